"""Locks, atomic writes and staged folders: a killed process leaves the old content or the new one."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InvalidInputError
from .reading import StrPath

try:
    import fcntl
except ImportError:  # no flock on this platform: temporary files of killed processes stay
    fcntl = None  # type: ignore[assignment]

# Errors of file systems without locks.
_NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

STAGING_PREFIX = ".staging-"

_STAGED_NAME = re.compile(r"\.staging-.+-[0-9a-f]{16}\Z", re.DOTALL)


@contextmanager
def exclusive_lock(path: StrPath) -> Iterator[None]:
    """Holds an advisory lock on a file for the time of the block.

    The file is created and stays; its presence alone does not mean that it is locked. The system releases the lock
    when the process ends, however it ends. Forked processes, such as workers of a data loader, do not hold it. On file
    systems without locks this does nothing.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Raises:
        BlockingIOError: If the lock is held already.
        OSError: If the file cannot be opened, or is a symbolic link.
    """
    # `fallback_to_soft` would use the file itself as the lock, which outlives its holder.
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    owner = os.getpid()
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"'{os.fspath(path)}' is locked") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if os.getpid() == owner:
            lock.release()


def json_bytes(obj: Any) -> bytes:
    """Returns indented JSON in UTF-8, with keys in the given order.

    Raises:
        ValueError: If a number is NaN or infinite, or text holds a lone surrogate.
    """
    return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def write_json_atomic(path: StrPath, obj: Any, *, private: bool = False) -> None:
    """Writes an object as JSON, like [`write_bytes_atomic`]."""
    write_bytes_atomic(path, json_bytes(obj), private=private)


def write_bytes_atomic(path: StrPath, data: bytes, *, private: bool = False) -> None:
    """Writes a file that holds the old content or the new one, whatever happens in between.

    The bytes go to a temporary file in the same folder, reach the disk and are then moved into place. Temporary files
    of killed processes are removed first. A file that is replaced keeps its permissions.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        data (`bytes`):
            Its content.
        private (`bool`, *optional*, defaults to `False`):
            Whether only the owner may read a new file (mode 0600, on systems that have it).

    Raises:
        OSError: If writing fails (disk full, no permission, …). The file is unchanged, and the temporary file is gone.
    """
    path = Path(path)
    remove_abandoned(path.parent)
    try:
        staged, fd = _new_staged(path, folder=False)
    except OSError as error:
        raise explained(error, path) from error
    # On systems with locks the file is moved while it is open, so that other processes do not remove it as abandoned.
    with open(fd, "wb", buffering=0, closefd=True) as file:
        try:
            _set_mode(fd, path, private)
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
                raise explained(error, path) from error
            raise
    _fsync_folder(path.parent)


@contextmanager
def staged_folder(target: StrPath) -> Iterator[Path]:
    """Yields a temporary folder that becomes `target`, whole and on disk, when the block ends without an error.

    After an error the temporary folder is removed and `target` is unchanged. An existing `target` is replaced. It is
    moved aside first, because systems cannot swap two folders in one step; a process killed between the two moves
    leaves no `target`. Folders that killed processes left in the same parent (prefix `.staging-`) are removed. Those
    of living processes stay.

    Args:
        target (`str` or `os.PathLike`):
            The folder. Missing parents are created.

    Yields:
        `Path`: The folder to fill.

    Raises:
        InvalidInputError: If `target` is a file or a link.
        OSError: If writing fails.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent)
    except OSError as error:
        raise explained(error, target) from error
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InvalidInputError(
            os.fspath(target), "a file or a link", "a folder, or nothing", "Move it away, or choose another path."
        )
    try:
        staged, fd = _new_staged(target, folder=True)
    except OSError as error:
        raise explained(error, target) from error
    try:
        yield staged
        try:
            _fsync_tree(staged)
            _replace_folder(target, staged)
        except OSError as error:
            raise explained(error, target) from error
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def remove_abandoned(folder: StrPath) -> None:
    """Removes the temporary files and folders in a folder whose writers are not alive.

    A writer holds a lock on its temporary file or folder. If it can be locked, its writer has ended.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
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
    """Creates a file or folder beside `target`. Returns it with the descriptor that locks it (-1 without locks)."""
    while True:
        staged = _staged_name(target)
        flags = os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        if folder:  # unlike `tempfile`, mkdir and open leave the permissions to the umask
            staged.mkdir()
            if fcntl is None:
                return staged, -1
        try:
            fd = os.open(staged, flags, 0o666)
        except FileNotFoundError:
            if folder:
                continue  # another process removed it before it could be locked
            raise
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not staged.exists():
                os.close(fd)
                continue
        return staged, fd


def _staged_name(target: Path) -> Path:
    return target.with_name(f"{STAGING_PREFIX}{target.name[:40]}-{secrets.token_hex(8)}")


def _set_mode(fd: int, path: Path, private: bool) -> None:
    """Sets the permissions of the empty file that becomes `path`, unless the umask decides."""
    mode = 0o600 if private else None
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(path).st_mode) & 0o777
    if mode is not None and hasattr(os, "fchmod"):
        os.fchmod(fd, mode)


def _replace_folder(target: Path, staged: Path) -> None:
    """Moves `staged` to `target`, and removes the folder that was there."""
    old = _staged_name(target) if target.exists() else None  # a later process removes this name if this one is killed
    if old is not None:
        os.rename(target, old)
    try:
        os.rename(staged, target)
    except BaseException:
        if old is not None:
            os.rename(old, target)
        raise
    try:
        _fsync_folder(target.parent)
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


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
    if os.name == "nt":  # folders cannot be opened
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system cannot
            raise
    finally:
        os.close(fd)


def explained(error: OSError, path: Path) -> OSError:
    """Returns the same error with its consequence for a file, and what to do, for writes that are atomic.

    Args:
        error (`OSError`):
            The error.
        path (`Path`):
            The file that was to be written.
    """
    fix = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Fix the cause"
    message = (
        f"could not write {path.name} ({error.strerror or error}); the former content is unchanged, and nothing "
        f"half-written is left. {fix} and run again"
    )
    return OSError(error.errno, message, str(path))
