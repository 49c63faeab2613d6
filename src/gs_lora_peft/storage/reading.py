"""Reading what may be damaged or come from elsewhere: hashes, limits, strict JSON, paths that stay inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InvalidInputError

StrPath = str | os.PathLike[str]


def sha256_of(path: StrPath) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_problem(path: StrPath, sha256: str) -> str | None:
    """Says why a file does not have the SHA-256 that it should have, or `None` if it does."""
    if not os.path.exists(path):
        return "it is missing"
    if not os.path.isfile(path):
        return "it is not a regular file"
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return None if found == sha256 else f"its SHA-256 is {found[:12]}... instead of {sha256[:12]}..."


def relative_path_problem(relative: Any) -> str | None:
    """Says why `relative` cannot be a file inside a folder by its spelling alone, or `None` if it can."""
    if not isinstance(relative, str) or not relative:
        return "it is not a non-empty string"
    if "\\" in relative or any(ord(c) < 32 for c in relative):
        return "it holds a backslash or a control character"
    if relative.startswith("/") or re.match(r"[A-Za-z]:", relative):
        return "it is an absolute path"
    if any(part in ("", ".", "..") for part in relative.split("/")):
        return "it has an empty, '.' or '..' part"
    return None


def safe_join(folder: StrPath, relative: str) -> Path:
    """Joins `folder` and a relative POSIX path that was read from a file, and refuses every way out of the folder.

    Links are followed to see where the path really ends. It must be inside `folder`, with one exception: the files
    of a snapshot in the Hugging Face cache are links into the `blobs` folder of the same repository or of the cache.

    Args:
        folder (`str` or `os.PathLike`):
            The folder that must not be left.
        relative (`str`):
            A path with `/` between its parts. It need not exist.

    Raises:
        InvalidInputError: If the path is absolute, has `..` or a backslash in it, or leads out of the folder by a
            link.
    """
    problem = relative_path_problem(relative)
    if problem is None:
        try:
            root = os.path.realpath(folder)
            end = os.path.realpath(os.path.join(root, relative))
        except (OSError, ValueError) as error:  # too long, not encodable
            problem = str(error)
        else:
            if any(end.startswith(os.path.join(inside, "")) for inside in (root, *cache_blobs(folder))):
                return Path(folder) / relative
            problem = "it leads out of the folder through a symbolic link"
    raise InvalidInputError(
        "path",
        relative,
        f"a relative path with '/' that stays inside '{folder}'",
        f"{problem[0].upper()}{problem[1:]}. Do not use this folder unless you trust its source; fetch a clean copy.",
    )


def cache_blobs(folder: StrPath) -> list[str]:
    """Where the contents of a snapshot in the Hugging Face cache are; empty for any other folder."""
    # models--org--name/snapshots/<revision> holds links to models--org--name/blobs/<hash>. Those of files that came
    # over Xet are links themselves, to blobs/<prefix>/<hash> beside all repositories.
    snapshot = Path(os.path.abspath(folder))
    repository = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", repository.name):
        return [os.path.realpath(place / "blobs") for place in (repository, repository.parent)]
    return []


def read_limited(path: StrPath, max_bytes: int) -> bytes:
    """Reads a regular file of at most `max_bytes` bytes; InvalidInputError if it is something else or larger."""
    # Not blocking: a named pipe in the file's place must be refused, not waited for.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidInputError(os.fspath(path), "not a regular file", f"a file of at most {max_bytes} bytes")
    with open(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidInputError(
            os.fspath(path), f"larger than {max_bytes} bytes", "a smaller file", "It cannot be genuine."
        )
    return data


def parse_json(data: bytes) -> Any:
    """Parses UTF-8 JSON strictly.

    Raises:
        InvalidInputError: If a number is NaN or infinite, a key is given twice, or the text is nested too deeply.
        ValueError: If it is not JSON, or not UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidInputError("JSON key", twice, "a key that is given once, not twice")
        return result

    def refuse(constant: str) -> NoReturn:
        raise InvalidInputError("JSON number", constant, "a finite number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise InvalidInputError("JSON text", "nested too deeply", "lists and objects that are less nested") from None
