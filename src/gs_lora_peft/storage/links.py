"""Symbolic links inside a folder: what is written, read and removed there must not happen somewhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InvalidInputError
from .reading import StrPath, cache_blobs


def refuse_links(folder: StrPath, names: Iterable[str]) -> None:
    """Checks that no part of a folder is a symbolic link. The folder itself may be one, or lie behind one.

    The files of a snapshot in the Hugging Face cache are links to the contents of the same repository, and accepted.

    Args:
        folder (`str` or `os.PathLike`):
            The folder; it need not exist.
        names (`Iterable[str]`):
            Files and folders in it; folders are looked through.

    Raises:
        InvalidInputError: If one of them, or something in one of them, is a link.
    """
    blobs = tuple(os.path.join(inside, "") for inside in cache_blobs(folder))
    for path in _links(os.path.join(folder, name) for name in names):
        if not (blobs and os.path.realpath(path).startswith(blobs)):
            raise InvalidInputError(
                path,
                "a symbolic link",
                f"a file or folder inside '{folder}', because its contents are written and removed",
                f"Put the real one in its place. To store a run elsewhere, make '{folder}' as a whole a link.",
            )


def leads_out(folder: StrPath, path: Path) -> bool:
    """Whether a path below a folder goes through a link, or is one; the folder itself may be a link."""
    parts = path.relative_to(folder).parts
    return any(Path(folder, *parts[:count]).is_symlink() for count in range(1, len(parts) + 1))


def remove_inside(folder: StrPath, path: Path) -> None:
    """Removes a folder below another one, as far as that can be done; never through a link, nor what a link leads to.

    Args:
        folder (`str` or `os.PathLike`):
            The folder that must not be left; it may be a link itself.
        path (`Path`):
            `folder` and the names of folders below it.
    """
    if not leads_out(folder, path):
        shutil.rmtree(path, ignore_errors=True)


def _links(paths: Iterable[str]) -> Iterator[str]:
    """The links among some paths, and in the folders among them."""
    for top in paths:
        if os.path.islink(top):
            yield top
            continue
        for parent, folders, files in os.walk(top):  # does not follow links that it finds
            yield from (path for name in (*folders, *files) if os.path.islink(path := os.path.join(parent, name)))
