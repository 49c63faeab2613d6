"""Reading what may be damaged or come from elsewhere: hashes, limits, strict JSON, paths that stay inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

StrPath = str | os.PathLike[str]


def sha256_of(path: StrPath) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_problem(path: StrPath, sha256: str, owners: Mapping[str, str] | None = None) -> str | None:
    """Says in what way a file is not the one whose hash is given, or `None` if it is.

    Args:
        path (`str` or `os.PathLike`): The file.
        sha256 (`str`): The hash it should have.
        owners (`Mapping[str, str]`, *optional*): Names of other files by their hash, to tell when two were swapped.
    """
    if not os.path.exists(path):
        return "it is missing"
    if not os.path.isfile(path):
        return "it is not a regular file"
    try:
        found = sha256_of(path)
        if found == sha256:
            return None
        size, promised = os.path.getsize(path), _promised_size(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    detail = f"{size} bytes with SHA-256 {found[:12]}... instead of {sha256[:12]}..."
    if owners and found in owners:
        return f"swapped, it has the content of {owners[found]} ({detail})"
    if size == 0 or (promised is not None and size < promised):
        return f"truncated ({detail}" + (f"; its header promises {promised} bytes)" if promised else ")")
    return f"changed ({detail})"


def _promised_size(path: StrPath) -> int | None:
    # The layout of safetensors: the header's length in 8 bytes, the header, the data to the largest offset in it.
    if not os.fspath(path).endswith(".safetensors"):
        return None
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > os.path.getsize(path):
            return start if start < 2**40 else None
        try:
            header = parse_json(file.read(start - 8))
            return start + max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None


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
    """Joins a relative POSIX path that was read from a file to `folder`, and refuses every way out of the folder.

    Links are followed to see where the path really ends. It must be inside `folder`, with one exception: the files
    of a snapshot in the Hugging Face cache are links into the `blobs` folder of the same repository or of the cache.

    Args:
        folder (`str` or `os.PathLike`): The folder that must not be left.
        relative (`str`): A path with `/` between its parts. It need not exist.

    Raises:
        ValueError: The path is absolute, climbs with `..`, uses backslashes or leads out of the folder by a link.
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
    raise ValueError(
        f"The path {relative!r} is not accepted because {problem}; expected a relative path with '/' that stays "
        f"inside '{folder}'. Do not use this folder unless you trust where it came from; fetch a clean copy."
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
    """Reads a regular file of at most `max_bytes` bytes; ValueError if it is something else or larger."""
    # Not blocking: a named pipe in the file's place must be refused, not waited for.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"'{path}' is not a regular file; expected a file of at most {max_bytes} bytes.")
    with open(fd, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"'{path}' is larger than {max_bytes} bytes, the most that is read. It cannot be genuine.")
    return data


def parse_json(data: bytes) -> Any:
    """Parses UTF-8 JSON strictly: ValueError on NaN and infinities, on a key given twice and on endless nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
        return result

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not valid JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
