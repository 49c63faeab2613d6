"""Locks that end with their holder."""

import errno
import os
import signal
import stat
import subprocess

import filelock
import pytest
from io_cases import names, python

from gs_lora_peft.io import exclusive_lock, write_bytes_atomic

# Locks


def test_a_lock_is_held_once_and_leaves_a_harmless_file(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with exclusive_lock(path), pytest.raises(BlockingIOError), exclusive_lock(path):
            raise AssertionError("must not be entered")
    assert path.read_bytes() == b""


@pytest.mark.skipif(not filelock.has_fcntl, reason="needs flock")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, code):
    """Work goes on there, and no file is left that would keep others out."""
    import fcntl

    def unsupported(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for _ in range(2):
        with exclusive_lock(tmp_path / "lock"):
            write_bytes_atomic(tmp_path / "file", b"x")
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), exclusive_lock(tmp_path / "link"):
        raise AssertionError("must not be entered")
    assert names(tmp_path) == ["link"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs umask and modes")
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_decides_who_may_take_the_lock(tmp_path, umask):
    """In a folder of a group every member can lock, as every member can write."""
    before = os.umask(umask)
    try:
        with exclusive_lock(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_do_not_hold_the_lock(tmp_path):
    """A worker that outlives a killed holder does not keep others out; nor does its end free what the holder holds."""
    code = """
        import os, sys, time
        from gs_lora_peft.io import exclusive_lock
        with exclusive_lock(sys.argv[1]):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            brief = os.fork()
            if brief == 0:
                sys.exit()  # leaves the block
            os.waitpid(brief, 0)
            print(worker, flush=True)
            time.sleep(60)
    """
    path = tmp_path / "lock"
    run = subprocess.Popen(python(code, path), stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    try:
        with pytest.raises(BlockingIOError), exclusive_lock(path):
            raise AssertionError("must not be entered")
        run.kill()
        run.wait()
        with exclusive_lock(path):
            os.kill(worker, 0)  # is still there
    finally:
        os.kill(worker, signal.SIGKILL)
        run.stdout.close()
