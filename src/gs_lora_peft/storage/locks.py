"""Advisory locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .reading import StrPath

try:
    import fcntl
except ImportError:  # no flock on this platform: locks become advisory in name only, nothing is tidied up
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


@contextmanager
def exclusive_lock(path: StrPath) -> Iterator[None]:
    """Holds an advisory lock on the file `path`, which is created and left there; it means nothing by itself.

    The system lets go of the lock when its holder ends, however it ends; processes that the holder forks, as workers
    of a data loader, do not hold it. Where the platform or the file system knows no locks, this does nothing.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    owner = os.getpid()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    _held.add(fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if os.getpid() == owner:
            _held.discard(fd)
            os.close(fd)


def _let_go_in_child() -> None:
    # A lock lasts until the last copy of its descriptor is closed, and a worker may outlive a holder that was killed.
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
