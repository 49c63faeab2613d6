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
    N workers (gloo), which ends with the exit status of the worker that failed first. In every other case it does
    nothing: started by torchrun or mpirun, on accelerators, with N = 1.

    Raises:
        RuntimeError: N is neither in the launcher's command line nor in its configuration file.
    """
    prepared = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    if not prepared or any(name in os.environ for name in _RANKED):
        return
    command_line = psutil.Process(os.getppid()).cmdline()
    count = requested_processes(command_line, sys.argv[0]) or _configured_processes(command_line, sys.argv[0])
    if count is None:
        raise RuntimeError(
            "accelerate was asked for several CPU processes, but their number is neither in its command line nor in "
            "its configuration file, and this process would train alone. Start it with `accelerate launch --cpu "
            "--num_processes N`, or unset ACCELERATE_USE_CPU and MASTER_ADDR to use one process."
        )
    if count > 1:
        # Without the dashes the launcher takes the script's `--r` for a beginning of its own options.
        workers = ["-m", "gs_lora_peft.launch", "--standalone", "--nproc_per_node", str(count), "--"]
        os.execv(sys.executable, [sys.executable, *workers, *sys.argv])


def requested_processes(command_line: list[str], script: str) -> int | None:
    """The N of `--num_processes N` among the launcher's own options, those before the script; `None` without.

    Args:
        command_line (`list[str]`): the launcher's command line.
        script (`str`): path of the script, as it appears there.
    """
    found = re.search(r"--num[-_]processes[= ](\d+)", " ".join(_launcher_options(command_line, script)))
    return int(found[1]) if found else None


def _configured_processes(command_line: list[str], script: str) -> int | None:
    """`num_processes` of the configuration file that accelerate was given, or else of its default one."""
    # It takes seconds to import, and every script comes by here.
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    options = "\0".join(_launcher_options(command_line, script))
    given = re.search(r"--config[-_]file[=\0]([^\0]+)", options)
    path = given[1] if given else default_config_file
    if not os.path.isfile(path):
        return None
    count = getattr(load_config_from_file(path), "num_processes", None)
    return count if isinstance(count, int) and count > 0 else None


def _launcher_options(command_line: list[str], script: str) -> list[str]:
    return command_line[: command_line.index(script)] if script in command_line else command_line


def run_workers(arguments: list[str] | None = None) -> int:
    """`torch.distributed.run`, whose own exit status is 1 whatever a worker ended with.

    Args:
        arguments (`list[str]`, *optional*): its command line, by default that of the process.

    Returns:
        `int`: 0, or the exit status of the first worker that said that it did not succeed.

    Raises:
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: if a worker was killed or ended with 1, as
            after an error, of which this says more.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(arguments)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status <= 1:
            raise
        return status
    return 0


if __name__ == "__main__":
    sys.exit(run_workers())
