"""Advisory locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from .reading import StrPath

# What file systems without locks answer.
_NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def exclusive_lock(path: StrPath) -> Iterator[None]:
    """Holds an advisory lock on the file `path`, which is created and left there; it means nothing by itself.

    The system lets go of the lock when its holder ends, however it ends; processes that the holder forks, as workers
    of a data loader, do not hold it. Where the file system knows no locks, this does nothing.

    Raises:
        BlockingIOError: If another holder has the lock.
        OSError: If `path` cannot be opened, or is a symbolic link.
    """
    # Without `fallback_to_soft`: the lock of file systems without locks would be the file, which outlives its holder.
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
