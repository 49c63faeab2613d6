"""How a script ends: a user's error takes one line, which stays the last one under a launcher too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import PurePath
from typing import NoReturn

from .output import printable, traceback_wanted

_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHING_MODULES = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run"}
# Waits for the end of a process, a minute at most, and prints a line. A zombie has ended: who reads what it printed
# may wait for this line before it asks for the exit code.
_REPEAT = """
import sys, time
import psutil
try:
    launcher, end = psutil.Process(int(sys.argv[1])), time.monotonic() + 60
    while launcher.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)
except psutil.Error:
    pass
print(sys.argv[2], file=sys.stderr, flush=True)
"""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """
    Runs the main function of a script, and ends the process.

    First the processes that `accelerate launch --cpu --num_processes N` was asked for are started. What a user can
    correct (`ValueError`, and `OSError`, also for a Hub out of reach) ends in one line on stderr and exit code 1,
    without a traceback unless `GS_LORA_TRACEBACK=1`; any other error has its traceback, because the program is wrong.
    Launchers print a traceback of their own when a script fails: the line comes once more after it, so that it is the
    last one. `accelerate launch` itself ends with 1 whatever the exit code of the script was.

    Args:
        main (`Callable`):
            What to run. It may return an exit code; `None` is 0.
    """
    from ..launch import start_missing_cpu_processes
    from ..sequence.outcome import NOT_FORGOTTEN_STATUS

    try:
        start_missing_cpu_processes()
        code = main() or 0
        _leave_the_others()
        if code == NOT_FORGOTTEN_STATUS:
            say_last("Not everything is forgotten: the lines below the table say what is still recognised.")
    except KeyboardInterrupt:
        if traceback_wanted():
            raise
        print("Stopped.", file=sys.stderr)
        code = 130
    except (ValueError, OSError) as error:
        if traceback_wanted():
            raise
        say_last(f"Error: {printable(' '.join(str(error).split()) or type(error).__name__)}")
        code = 1
    sys.exit(code)


def _leave_the_others() -> None:
    """Ends the process group. Threads of it that still run when the interpreter ends abort the process (SIGABRT)."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def say_last(line: str) -> None:
    """Prints a line on stderr, and again when the launchers of this process have said what they have to say."""
    rank = int(os.environ.get("RANK", "0"))
    sys.stdout.flush()
    print(line if rank == 0 else f"[process {rank}] {line}", file=sys.stderr, flush=True)
    if rank == 0 and (launcher := _outermost_launcher()) is not None:
        # A process of its own, which outlives this one. It writes to where this one does.
        subprocess.Popen(
            [sys.executable, "-c", _REPEAT, str(launcher), line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def _outermost_launcher() -> int | None:
    """The process id of the launcher farthest up, as torchrun may have been started by accelerate."""
    import psutil

    found = None
    try:
        for parent in psutil.Process().parents():
            if _is_launcher(parent.cmdline()):
                found = parent.pid
    except psutil.Error:
        return found
    return found


def _is_launcher(command_line: list[str]) -> bool:
    # The name of a program is its first word, or the second of one that Python runs; `-m` comes before a module's.
    words = command_line[:4]
    return any(PurePath(word).name in _LAUNCHERS or word in _LAUNCHING_MODULES for word in words)
