"""Options that commands share, printing, and what holds in one of several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError

# Options


def _parsed_tasks(text: str) -> int | Sequence[str]:
    return int(text) if text.isascii() and text.isdigit() else [name.strip() for name in text.split(",")]


def _tasks_in_effect(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the tasks of the run on the command line, for the completion of a shell."""
    from ..ledger import ForgettingLedger

    try:
        names = [entry.name for entry in ForgettingLedger.load(ctx.params["run"]).active_tasks]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Folder of a run, or a repository on the Hub. A folder takes precedence."),
]

RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.")]

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task, as task_002.", autocompletion=_tasks_in_effect)]

Tasks = Annotated[
    Any,  # int | Sequence[str] | None, which typer does not know
    typer.Option(
        metavar="TASKS",
        help="Number of tasks in effect, from the first, or names, as task_001,task_003. By default all.",
        parser=_parsed_tasks,
    ),
]

Revision = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of the repository; by default main.")
]

Token = Annotated[
    str | None,
    typer.Option(metavar="TOKEN", help="Token for the Hub; by default HF_TOKEN or that of 'hf auth login'."),
]

MaxRank = Annotated[
    int | None,
    typer.Option(metavar="RANK", help="Largest rank in a layer; a larger one is recompressed. By default exact."),
]

Private = Annotated[bool, typer.Option("--private/--public", help="Visibility of a new repository.")]

Dataset = Annotated[str | None, typer.Option(metavar="ID", help="Hub id of the data set, for the card.")]

License = Annotated[str | None, typer.Option(metavar="NAME", help="License of the base model, for the card.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


# Names of options


# Options that all commands write alike, by the names that scripts of transformers give them, which work as well.
NAMES = {
    "--model_name_or_path": "--model",
    "--dataset_name": "--data",
    "--dataset_config_name": "--data-config",
    "--output_dir": "--output",
}


def renamed(text: str, names: Mapping[str, str] = NAMES, dashes: bool = False) -> str:
    """Returns a text with the names of options as a command has them.

    Args:
        text (`str`):
            The text.
        names (`Mapping[str, str]`, *optional*):
            The name of each option that has another one; by default those of `NAMES`.
        dashes (`bool`, *optional*, defaults to `False`):
            Whether the others are written with dashes.
    """

    def name(found: re.Match[str]) -> str:
        return names.get(found[0], found[0].replace("_", "-") if dashes else found[0])

    return re.sub(r"--[a-z_]+", name, text)


@contextmanager
def own_names(names: Mapping[str, str] = NAMES, dashes: bool = True) -> Iterator[None]:
    """Gives errors the names of options as they are here, see [`renamed`]: shared functions write --train_split."""
    try:
        yield
    except InvalidInputError as error:
        parts = (error.name, error.expected, error.fix)
        error.name, error.expected, error.fix = (renamed(part, names, dashes) for part in parts)
        error.args = type(error)(error.name, error.value, error.expected, error.fix).args
        raise


# Printing


WRONG_COMMAND_LINE = 2  # exit code

# An environment variable also works for scripts.
TRACEBACK_VARIABLE = "GS_LORA_TRACEBACK"


def traceback_wanted() -> bool:
    """Returns whether the environment asks for tracebacks."""
    return os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def printable(text: str) -> str:
    """Returns the text with escapes for characters that move a terminal's cursor or change the direction of text."""
    from ..io import visible

    return visible(text, keep="\n")


def print_result(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    """Prints the result of a command: `document` as JSON, or `text`."""
    if as_json:
        print_json(document)
    else:
        print(printable(text))


def print_json(document: Mapping[str, Any]) -> None:
    """Prints a document as JSON in ASCII, which needs no encoding."""
    print(json.dumps(document, indent=2))


class UsageError(Exception):
    """The command line is wrong. typer has errors of its own for that, with the same method."""

    def format_message(self) -> str:
        """Returns the message."""
        return str(self)


def print_error(error: Exception, as_json: bool) -> int:
    """Prints an error as one line, under a launcher as the last one; returns its exit code."""
    usage: Any = error if hasattr(error, "format_message") else None
    if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help
        return WRONG_COMMAND_LINE
    parts = [usage.format_message() if usage else str(error), *getattr(error, "__notes__", ())]
    if sys.stderr.isatty() and not as_json:  # what is in no log may name classes
        nearest = getattr(error, "nearest", {})
        parts += [f"Nearest to {item!r}: {', '.join(map(repr, found))}." for item, found in nearest.items()]
    message = " ".join(" ".join(parts).split()) or type(error).__name__
    if not is_foreseen(error):
        message = f"{type(error).__name__}: {message} ({TRACEBACK_VARIABLE}=1 shows the traceback)"
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    else:
        command = getattr(getattr(error, "ctx", None), "command_path", None)
        say_last(f"Error: {printable(message)}" + (f" ({command} --help)" if command else ""))
    return WRONG_COMMAND_LINE if usage else 1


def is_foreseen(error: Exception) -> bool:
    """Returns whether a user can correct what is wrong."""
    return isinstance(error, (ValueError, OSError)) or hasattr(error, "format_message")


@contextmanager
def working(message: str | None = None) -> Iterator[None]:
    """Prints a message on a terminal, and keeps the output of libraries out of stdout during the block."""
    if message is not None and sys.stderr.isatty():
        print(f"{printable(message)} ...", file=sys.stderr)
    with redirect_stdout(sys.stderr):
        yield


# Several processes


_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun"}
_LAUNCHING_MODULES = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run"}
# Waits at most a minute for the end of a process, and prints a line.
_REPEAT = """
import os, select, sys
try:
    select.select([os.pidfd_open(int(sys.argv[1]))], [], [], 60)
except ProcessLookupError:
    pass
print(sys.argv[2], file=sys.stderr, flush=True)
"""


def join_processes() -> None:
    """Makes several CPU processes train together. Without this, accelerate lets each train alone, silently."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    # accelerate (1.15) sets an address for several CPU processes, but starts only one without MPI.
    prepared = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    if prepared and not any(name in os.environ for name in _MPI_SIZES):
        raise InvalidInputError(
            "--num_processes",
            "more than 1",
            "1 with `accelerate launch --cpu`, which starts a single process",
            "Start several with `torchrun --nproc_per_node N -m -- gs_lora_peft forget …`.",
        )


def leave_processes() -> None:
    """Ends the process group. Threads that it leaves running would abort the process at its end (SIGABRT)."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def say_last(line: str) -> None:
    """Prints a line on stderr, and again after the output of this process's launcher."""
    rank = int(os.environ.get("RANK", "0"))
    sys.stdout.flush()
    print(line if rank == 0 else f"[process {rank}] {line}", file=sys.stderr, flush=True)
    if rank == 0 and (launcher := _launcher()) is not None:
        # A separate process, which outlives this one and writes to the same stderr.
        subprocess.Popen(
            [sys.executable, "-c", _REPEAT, str(launcher), line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def _launcher() -> int | None:
    """Returns the process id of the launcher that started this process; `None` without one, or outside of Linux."""
    parent = os.getppid()
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        command_line = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return None
    return parent if _is_launcher(os.fsdecode(command_line).split("\0")) else None


def _is_launcher(command_line: list[str]) -> bool:
    # A program is the first word, or the second after `python`; a module comes after `-m`.
    words = command_line[:4]
    return any(PurePath(word).name in _LAUNCHERS or word in _LAUNCHING_MODULES for word in words)
