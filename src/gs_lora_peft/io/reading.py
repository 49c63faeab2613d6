"""Checks what comes from outside before it is used: paths, links, content, JSON, names and text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InvalidInputError

StrPath = str | os.PathLike[str]

_A_PATH = "a path: text that is not empty, or an os.PathLike"

_CACHED_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]*\Z")

# They join letters of some scripts and parts of emoji. After an ASCII character they are only invisible.
_JOINERS = "\u200c\u200d"


def as_path(value: Any, name: str) -> Path:
    """Returns an argument as a path; `~` is the home folder.

    Args:
        value (`str` or `os.PathLike`):
            The argument. The path need not exist.
        name (`str`):
            Name of the argument or option, for the error.

    Raises:
        InvalidInputError: If it is neither text nor an `os.PathLike`, is blank, or holds characters that no file name
            can hold.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise InvalidInputError(name, value, _A_PATH, f"Pass text, such as {name}='runs/clinic'.")
    if not text.strip():
        raise InvalidInputError(name, value, _A_PATH, "Name a folder or a file; '.' is the working directory.")
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:  # an encoding error is one too
        raise InvalidInputError(name, value, "a path that the file system can hold", "Correct it.") from None
    return Path(os.path.expanduser(text))


def relative_path_problem(relative: Any) -> str | None:
    """Says why a spelling cannot be the path of a file inside a folder, or returns `None` if it can."""
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
    """Joins a folder and a relative POSIX path that was read from a file, and refuses paths out of the folder.

    Links are followed to their end, which must be inside the folder. The one exception are snapshots in the Hugging
    Face cache: their files are links into the `blobs` folder of the same repository or of the cache.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        relative (`str`):
            A path with `/` between its parts. It need not exist.

    Raises:
        InvalidInputError: If the path is absolute, contains `..` or a backslash, or leads out of the folder through a
            link.
    """
    problem = relative_path_problem(relative)
    if problem is None:
        try:
            root = os.path.realpath(folder)
            end = os.path.realpath(os.path.join(root, relative))
        except (OSError, ValueError) as error:  # too long, or not encodable
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
    """Returns the folders with the contents of a snapshot in the Hugging Face cache; none for any other folder."""
    # models--org--name/snapshots/<revision> holds links to models--org--name/blobs/<hash>. Blobs that came over Xet
    # are links themselves, to blobs/<prefix>/<hash> beside all repositories.
    snapshot = Path(os.path.abspath(folder))
    repository = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", repository.name):
        return [os.path.realpath(place / "blobs") for place in (repository, repository.parent)]
    return []


def refuse_links(folder: StrPath, names: Iterable[str]) -> None:
    """Refuses symbolic links inside a folder. The folder itself may be a link, or lie behind one.

    Links of a snapshot in the Hugging Face cache are accepted: they lead to the contents of the same repository.

    Args:
        folder (`str` or `os.PathLike`):
            The folder. It need not exist.
        names (`Iterable[str]`):
            Names of files and folders in it. Folders are searched to the bottom.

    Raises:
        InvalidInputError: If there is a link.
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


def _links(paths: Iterable[str]) -> Iterator[str]:
    """Yields the links among paths, and those in the folders among them."""
    for top in paths:
        if os.path.islink(top):
            yield top
            continue
        for parent, folders, files in os.walk(top):  # does not follow links
            yield from (path for name in (*folders, *files) if os.path.islink(path := os.path.join(parent, name)))


def leads_out(folder: StrPath, path: Path) -> bool:
    """Whether a path below a folder is a link or goes through one. The folder itself may be a link."""
    parts = path.relative_to(folder).parts
    return any(Path(folder, *parts[:count]).is_symlink() for count in range(1, len(parts) + 1))


def remove_inside(folder: StrPath, path: Path) -> None:
    """Removes a folder below another one, as far as possible. Links are not followed, and their targets stay.

    Args:
        folder (`str` or `os.PathLike`):
            The outer folder, which may be a link.
        path (`Path`):
            The folder to remove, below `folder`.
    """
    if not leads_out(folder, path):
        shutil.rmtree(path, ignore_errors=True)


def sha256_of(path: StrPath) -> str:
    """Returns the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_mismatch(path: StrPath, sha256: str) -> str | None:
    """Says how a file differs from its SHA-256, or returns `None` if it has the right one."""
    if not os.path.exists(path):
        return "it is missing"
    if not os.path.isfile(path):
        return "it is not a regular file"
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return None if found == sha256 else f"its SHA-256 is {found[:12]}... instead of {sha256[:12]}..."


def read_limited(path: StrPath, max_bytes: int) -> bytes:
    """Reads a regular file of at most `max_bytes` bytes.

    Raises:
        InvalidInputError: If it is not a regular file, or larger.
        OSError: If it cannot be read.
    """
    # Non-blocking, so that a named pipe is refused at once.
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
        InvalidInputError: If a number is NaN or infinite, a key occurs twice, or the text is nested too deeply.
        ValueError: If the data are not JSON in UTF-8.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidInputError("JSON key", twice, "a key that occurs once")
        return result

    def refuse(constant: str) -> NoReturn:
        raise InvalidInputError("JSON number", constant, "a finite number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise InvalidInputError("JSON text", "nested too deeply", "lists and objects with less nesting") from None


def public_name(name: str) -> tuple[str | None, str | None]:
    """Returns the part of a model's `name_or_path` that may be published, and its revision.

    A Hub id stays as it is. Only the last part of a folder remains, so that the machine's paths stay private.

    Args:
        name (`str`):
            The `name_or_path`.

    Returns:
        `tuple[str | None, str | None]`: The name, and the revision if `name` is a snapshot in the Hugging Face cache.
    """
    cached = _CACHED_SNAPSHOT.search(name)
    if cached:
        return cached[1].replace("--", "/"), cached[2]
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..", "~")]
    # Only `name` and `organisation/name` can be Hub ids. Everything else is a path, and so is every existing folder.
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) and not os.path.isdir(name)
    return (name if is_hub_id else parts[-1] if parts else None), None


def visible(text: str, keep: str = "") -> str:
    r"""Returns text with every invisible character as an escape, such as `\x1b` or `\u202e`.

    Args:
        text (`str`):
            Any text.
        keep (`str`, *optional*, defaults to `""`):
            Characters that stay as they are.
    """
    return "".join(
        c if _is_seen(c, before) or c in keep else _escaped(c) for before, c in zip(" " + text, text, strict=False)
    )


def _is_seen(character: str, before: str) -> bool:
    return character.isprintable() or (character in _JOINERS and not before.isascii())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def code_span(text: str) -> str:
    """Returns text as a code span in Markdown: on one line, without a character that ends the span."""
    return f"`{visible(' '.join(text.split())).replace('`', chr(39))}`"
