"""Locks that end with their holder."""

import errno
import os
import signal
import subprocess

import pytest
from storage_cases import names, python

from gs_lora_peft.storage import (
    exclusive_lock,
    locks,
    write_bytes_atomic,
)

# Locks


@pytest.mark.skipif(locks.fcntl is None, reason="needs file locks")
def test_a_lock_is_held_once_and_leaves_a_harmless_file(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with exclusive_lock(path), pytest.raises(BlockingIOError), exclusive_lock(path):
            raise AssertionError("must not be entered")
    assert path.read_bytes() == b""


@pytest.mark.skipif(locks.fcntl is None, reason="needs file locks")
def test_file_systems_without_locks_and_links(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), exclusive_lock(tmp_path / "link"):
        raise AssertionError("must not be entered")
    assert names(tmp_path) == ["link"]

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with exclusive_lock(tmp_path / "lock"):
        write_bytes_atomic(tmp_path / "file", b"x")


@pytest.mark.skipif(locks.fcntl is None, reason="needs file locks")
def test_forked_processes_do_not_hold_the_lock(tmp_path):
    """A worker that outlives a killed holder does not keep others out; nor does its end free what the holder holds."""
    code = """
        import os, sys, time
        from gs_lora_peft.storage import exclusive_lock
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
