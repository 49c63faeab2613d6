"""The program `gs-lora`: its commands, its help and its exit codes."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn, TextIO

import typer
from typer.main import get_command

from .audit import audit
from .benchmark import benchmark
from .commands import export, merge, pull, push, revoke, verify
from .convert_face import convert_face
from .forgetting.answering import asks_for_json
from .forgetting.command import RedoCommand, demo, forget, redo
from .forgetting.help import SettingsCommand
from .show import show
from .terminal import TRACEBACK_VARIABLE, is_foreseen, print_error, traceback_wanted

_EXIT_CODES = (
    "Exit codes: 0 if all went well; 1 if a check failed, or the command was refused or failed; 2 if the command "
    "line is wrong; 3 if 'demo', 'forget', 'redo', 'show' or 'verify' find a request that is not forgotten, of which "
    "other commands warn, or if 'audit' finds a gap above --max-gap, or cannot tell; 130 if it was interrupted. With "
    "--json, stdout is one JSON document in all of these cases: the result, or an object with the key 'error'. "
    "Progress and warnings go to stderr."
)


app = typer.Typer(
    no_args_is_help=True,
    epilog=_EXIT_CODES,
    context_settings={
        "help_option_names": ["--help", "-h"],
        # --train_split, as `forget` and scripts of transformers write it, means --train-split.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def _flowing(docstring: str) -> str:
    """Returns a docstring whose paragraphs have no line breaks."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_TRAIN, _LOOK, _SHARE = "Forget", "Look and check", "Share and convert"
for command, panel, example in (
    (demo, _TRAIN, "gs-lora demo"),
    (forget, _TRAIN, "gs-lora forget --model org/vit --data org/images --forget 'tench,church;dog' --recipe deep"),
    (redo, _TRAIN, "gs-lora redo runs/clinic task_003 --data org/faces --num_train_epochs 30"),
    (revoke, _TRAIN, "gs-lora revoke runs/clinic task_002 --reason 'consent renewed'"),
    (show, _LOOK, "gs-lora show org/clinic-forgotten"),
    (verify, _LOOK, "gs-lora verify org/clinic-forgotten --base-model google/vit-base-patch16-224"),
    (audit, _LOOK, "gs-lora audit runs/clinic --data org/faces --reference retrained-model --quick"),
    (benchmark, _LOOK, "gs-lora benchmark digits.yaml --methods my_module:MyMethod"),
    (export, _SHARE, "gs-lora export runs/clinic clinic-first-two --tasks 2"),
    (merge, _SHARE, "gs-lora merge org/clinic-forgotten clinic-model --base-model google/vit-base-patch16-224"),
    (push, _SHARE, "gs-lora push runs/clinic org/clinic-forgotten --withhold-classes"),
    (pull, _SHARE, "gs-lora pull org/clinic-forgotten runs/clinic"),
    (convert_face, _SHARE, "gs-lora convert-face face.pth face-model --scale 64 --margin 0.35"),
):
    app.command(
        cls=SettingsCommand if command is forget else RedoCommand if command is redo else None,
        help=_flowing(command.__doc__ or ""),
        rich_help_panel=panel,
        epilog=f"Example: {example}",
        options_metavar="RUN [TASK] [OPTIONS]" if command is redo else "[OPTIONS]",
    )(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("gs-lora-peft"))
        raise typer.Exit


@app.callback()
def program(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Show the traceback of an error; so does {TRACEBACK_VARIABLE}=1.")
    ] = False,
) -> None:
    """Make models forget classes, attack the result, and show, check, compare, export, merge and share runs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and ends the process.

    Args:
        arguments (`Sequence[str]`, *optional*):
            By default the command line of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the name of a class may have letters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, for programmers
    warnings.showwarning = _print_warning
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the result has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        code = 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        # With `standalone_mode` typer prints errors and ends the process itself.
        return get_command(app).main(arguments, prog_name="gs-lora", standalone_mode=False) or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        # What nobody foresaw after hours of training is worth its traceback.
        is_fault = not is_foreseen(error) and not {"forget", "redo", "demo"}.isdisjoint(arguments[:2])
        if "--traceback" in arguments or traceback_wanted() or is_fault:
            raise
        return print_error(error, _wants_json(arguments))


def _wants_json(arguments: list[str]) -> bool:
    has_settings = not {"forget", "redo"}.isdisjoint(arguments[:2])  # the first word may be --traceback
    return asks_for_json(arguments) if has_settings else "--json" in arguments


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"Warning: {message}", file=sys.stderr)
