"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError

_EXPECTED = "a path: text that is not empty, or an os.PathLike"


def as_path(value: Any, name: str) -> Path:
    """The path that an argument or an option names; `~` is the home folder.

    Args:
        value (`str` or `os.PathLike`):
            What was given. It need not exist.
        name (`str`):
            Name of the argument or option, for the error.

    Raises:
        InvalidInputError: If it is `None`, a `bool`, empty, bytes, something else altogether, or text that no file
            name can hold.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise InvalidInputError(name, value, _EXPECTED, f"Pass text, such as {name}='runs/clinic'.")
    if not text.strip():
        raise InvalidInputError(name, value, _EXPECTED, "Name a folder or a file; '.' is the working directory.")
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:  # an encoding error is one too
        raise InvalidInputError(name, value, "a path that the file system can hold", "Correct it.") from None
    return Path(os.path.expanduser(text))
