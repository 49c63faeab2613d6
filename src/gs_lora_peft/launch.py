"""Several CPU processes from `accelerate launch --cpu --num_processes N`."""

from __future__ import annotations

import os
import re
import sys

import psutil

_RANKED = ("RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_missing_cpu_processes() -> None:
    """
    Start the processes that `accelerate launch --cpu --num_processes N script.py` was asked for.

    Without an MPI hostfile accelerate (1.15) prepares the address of a rendezvous and then starts a single process,
    which would train alone. Called first thing in a script, this replaces that process by `torch.distributed.run` with
    N workers (gloo). In every other case it does nothing: started by torchrun or mpirun, on accelerators, with N = 1.
    """
    prepared = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    if not prepared or any(name in os.environ for name in _RANKED):
        return
    count = requested_processes(psutil.Process(os.getppid()).cmdline(), sys.argv[0])
    if count > 1:
        workers = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        os.execv(sys.executable, [sys.executable, *workers, *sys.argv])


def requested_processes(command_line: list[str], script: str) -> int:
    """The N of `--num_processes N` among the launcher's own options, those before the script; 1 if there is none.

    Args:
        command_line (`list[str]`): the launcher's command line.
        script (`str`): path of the script, as it appears there.
    """
    options = command_line[: command_line.index(script)] if script in command_line else command_line
    found = re.search(r"--num[-_]processes[= ](\d+)", " ".join(options))
    return int(found[1]) if found else 1
