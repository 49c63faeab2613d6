"""Files that are whole or absent: atomic writes, staged folders, locks, hashes and safe relative paths."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # no flock on this platform: locks become advisory in name only, nothing is tidied up
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

STAGING_PREFIX = ".staging-"
REPLACED_PREFIX = ".replaced-"
_STAGED_NAME = re.compile(r"\.staging-.+-[0-9a-f]{16}\Z", re.DOTALL)


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
    of a snapshot in the Hugging Face cache are links into the `blobs` folder of the same repository.

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
            if any(end.startswith(os.path.join(inside, "")) for inside in (root, _cache_blobs(folder)) if inside):
                return Path(folder) / relative
            problem = "it leads out of the folder through a symbolic link"
    raise ValueError(
        f"The path {relative!r} is not accepted because {problem}; expected a relative path with '/' that stays "
        f"inside '{folder}'. Do not use this folder unless you trust where it came from; fetch a clean copy."
    )


def _cache_blobs(folder: StrPath) -> str | None:
    # models--org--name/snapshots/<revision> holds links to models--org--name/blobs/<hash>.
    snapshot = Path(os.path.abspath(folder))
    repository = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", repository.name):
        return os.path.realpath(repository / "blobs")
    return None


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


def json_bytes(obj: Any) -> bytes:
    """Readable JSON in UTF-8, keys in the order given; ValueError for NaN, infinities and lone surrogates."""
    return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def write_json_atomic(path: StrPath, obj: Any) -> None:
    """Writes `obj` as JSON so that `path` holds the old content or the new one, whatever happens in between."""
    write_bytes_atomic(path, json_bytes(obj))


def write_bytes_atomic(path: StrPath, data: bytes) -> None:
    """Writes `data` so that `path` holds the old content or the new one, whatever happens in between.

    The bytes go to a temporary file beside `path`, reach the disk and are then moved into place. What a killed run
    left behind of such files is removed first.

    Raises:
        OSError: The write failed (disk full, no permission, ...). `path` is as it was, the temporary file is gone.
    """
    path = Path(path)
    remove_abandoned(path.parent)
    try:
        staged, fd = _new_staged(path, folder=False)
    except OSError as error:
        raise _explained(error, path) from error
    # Where there are locks the file is moved while still open, so that nobody takes it for abandoned.
    with open(fd, "wb", buffering=0, closefd=True) as file:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
            if fcntl is None:
                file.close()
            os.replace(staged, path)
        except BaseException as error:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                os.unlink(staged)
            if isinstance(error, OSError):
                raise _explained(error, path) from error
            raise
    _fsync_folder(path.parent)


@contextmanager
def staged_folder(target: StrPath) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place, whole and on disk, when the block ends well.

    On an error the temporary folder is removed and `target` is as it was. A `target` that exists is replaced; as no
    system swaps two folders in one step, it is first moved aside, and a run killed in that instant is mended by the
    next call. What killed runs left behind in the same parent (names with the prefix `.staging-`) is removed; folders
    that a living process still fills are not.

    Args:
        target (`str` or `os.PathLike`): The folder to make. Missing parents are created.

    Yields:
        `Path`: The folder to fill.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent)
    _recover_replaced(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(
            f"'{target}' is a file or a link; expected a folder or nothing. Move it away or choose another."
        )
    try:
        staged, fd = _new_staged(target, folder=True)
    except OSError as error:
        raise _explained(error, target) from error
    try:
        yield staged
        try:
            _fsync_tree(staged)
            old = _move_folder(staged, target)
        except OSError as error:
            raise _explained(error, target) from error
        try:
            _fsync_folder(target.parent)
        finally:
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


@contextmanager
def exclusive_lock(path: StrPath) -> Iterator[None]:
    """Holds an advisory lock on the file `path`, which is created and left there; it means nothing by itself.

    The system lets go of the lock when its holder ends, however it ends. Where the platform or the file system knows
    no locks, this does nothing.

    Raises:
        BlockingIOError: Somebody else holds the lock.
    """
    if fcntl is None:
        yield
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            with suppress(OSError):  # unlocked by hand: a forked worker may still have the file open
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def remove_abandoned(folder: StrPath) -> None:
    """Removes the staged files and folders in `folder` whose writers are no longer alive.

    A writer keeps its staged file or folder locked for as long as it lives, so what can be locked is abandoned.
    """
    if fcntl is None or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        staged = [entry for entry in entries if _STAGED_NAME.match(entry.name)]
    for entry in staged:
        is_folder = entry.is_dir(follow_symlinks=False)
        if not is_folder and not entry.is_file(follow_symlinks=False):
            continue
        with suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True) if is_folder else os.unlink(entry.path)
            finally:
                os.close(fd)


def _new_staged(target: Path, *, folder: bool) -> tuple[Path, int]:
    """A new file or folder beside `target` and the descriptor through which it is locked (-1 if it is not)."""
    while True:
        staged = target.with_name(f"{STAGING_PREFIX}{target.name[:40]}-{secrets.token_hex(8)}")
        flags = os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        if folder:  # mkdir and open, unlike `tempfile`, leave the permissions to the umask
            staged.mkdir()
            if fcntl is None:
                return staged, -1
        try:
            fd = os.open(staged, flags, 0o666)
        except FileNotFoundError:
            if folder:
                continue  # another process tidied it up before it could be locked
            raise
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not staged.exists():
                os.close(fd)
                continue
        return staged, fd


def _replaced_names(target: Path) -> list[Path]:
    pattern = re.compile(re.escape(f"{REPLACED_PREFIX}{target.name[:40]}-") + r"[0-9a-f]{16}\Z")
    return [path for path in target.parent.iterdir() if pattern.match(path.name)]


def _recover_replaced(target: Path) -> None:
    for old in _replaced_names(target):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)


def _move_folder(staged: Path, target: Path) -> Path | None:
    """Moves `staged` to `target`; returns where the former `target` is now."""
    old: Path | None = None
    if target.exists():
        old = target.with_name(f"{REPLACED_PREFIX}{target.name[:40]}-{secrets.token_hex(8)}")
        os.rename(target, old)
    try:
        os.rename(staged, target)
    except BaseException:
        if old is not None:
            os.rename(old, target)
        raise
    return old


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                continue
            fd = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _fsync_folder(parent)


def _fsync_folder(folder: StrPath) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(fd)


def _explained(error: OSError, path: Path) -> OSError:
    """The same error with what it means for `path` and what to do."""
    mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend the cause"
    message = (
        f"could not write {path.name} ({error.strerror or error}); what was there before is unchanged and nothing "
        f"half-written is left. Please {mend} and run again"
    )
    return OSError(error.errno, message, str(path))
