"""What is printed: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..storage import visible

# In the environment, it works wherever the command line is out of reach.
TRACEBACK_VARIABLE = "GS_LORA_TRACEBACK"


def traceback_wanted() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def printable(text: str) -> str:
    """The text with every character escaped that could move a terminal's cursor or turn its text around."""
    return visible(text, keep="\n")


def print_result(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    """Prints what came of a command, for machines or for people."""
    if as_json:
        print_json(document)
    else:
        print(printable(text))


def print_json(document: Mapping[str, Any]) -> None:
    """Prints a document in ASCII, which every program reads alike."""
    print(json.dumps(document, indent=2))


def print_error(error: Exception, as_json: bool) -> int:
    """Prints an error in one message; returns the exit code that goes with it."""
    usage: Any = error if hasattr(error, "format_message") else None  # typer's word for a wrong command line
    message = usage.format_message() if usage else str(error)
    if not usage and not isinstance(error, (ValueError, OSError)):
        message = f"{type(error).__name__}: {message} (GS_LORA_TRACEBACK=1 shows where it came from)"
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    elif usage:
        usage.show()
    else:
        print(f"Error: {printable(message)}", file=sys.stderr)
    return 2 if usage else 1


@contextmanager
def working(message: str) -> Iterator[None]:
    """Says on a terminal what takes its time, and keeps everything that libraries print out of the result."""
    if sys.stderr.isatty():
        print(f"{printable(message)} ...", file=sys.stderr)
    with redirect_stdout(sys.stderr):
        yield
