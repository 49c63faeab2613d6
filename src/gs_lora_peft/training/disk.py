"""Checkpoints that cannot be written: one kind of error for all libraries that write them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..storage.writing import explained

_NUMBER = re.compile(r"\(os error (\d+)\)")  # what Rust writes behind the text of a system's error
_TORCH = ("inline_container", "PytorchStreamWriter", "iostream error", "file write failed", "Parent directory")
_PROBE = 2**20


@contextmanager
def whole_checkpoint(folder: str | os.PathLike, removes: bool = True) -> Iterator[None]:
    """Writes a checkpoint in the block, or leaves nothing of it.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.
        removes (`bool`, *optional*, defaults to `True`): Whether this process removes what was written so far.

    Raises:
        OSError: The write failed (disk full, no permission, ...), with the folder as its `filename`.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number_of(error, folder)
        if number is None:
            raise
        if removes:
            shutil.rmtree(folder, ignore_errors=True)
        raise explained(OSError(number, os.strerror(number)), Path(folder)) from error


def _number_of(error: Exception, folder: str | os.PathLike) -> int | None:
    """The number of the system's error that a library has met; `None` if it is about something else."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):
        found = _NUMBER.search(str(error))
        return int(found[1]) if found else None
    if not any(text in str(error) for text in _TORCH):
        return None
    return _asked(folder) or errno.EIO


def _asked(folder: str | os.PathLike) -> int | None:
    """The system's error number for a small write. Torch says that a write failed, but not why."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(folder))) as file:
            file.write(bytes(_PROBE))
    except OSError as error:
        return error.errno
    return None
