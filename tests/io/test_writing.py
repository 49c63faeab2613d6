"""Files and folders that are whole or absent, whatever goes wrong while they are written."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest
from errors import refused
from io_cases import names, out_of_space, python

from gs_lora_peft.io import remove_abandoned, staged_folder, write_bytes_atomic, write_json_atomic, writing

# Atomic writes


def test_write_and_overwrite(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"b": [1, 2.5, None], "a": "日本"})
    assert path.read_text("utf-8") == '{\n  "b": [\n    1,\n    2.5,\n    null\n  ],\n  "a": "日本"\n}\n'
    write_bytes_atomic(path, b"")
    assert path.read_bytes() == b""
    write_bytes_atomic(str(path), b"x" * 5_000_000)
    assert path.stat().st_size == 5_000_000
    assert names(tmp_path) == ["a.json"]


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "file", b"x")
        with staged_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    write_bytes_atomic(tmp_path / "file", bytes(range(100)))
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
@pytest.mark.parametrize("existed", [True, False])
def test_any_failure_leaves_the_old_file(tmp_path, monkeypatch, function, existed):
    path = tmp_path / "file"
    if existed:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, function, out_of_space)
    with pytest.raises(OSError) as caught:
        write_bytes_atomic(path, b"new")
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert names(tmp_path) == (["file"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    def interrupted(fd):
        raise KeyboardInterrupt

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomic(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_json_cannot_hold_is_refused_before_writing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    for bad in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(ValueError):
            write_json_atomic(tmp_path / "file", [bad])
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_bytes_atomic(tmp_path / "none" / "file", b"x")
    assert caught.value.filename == str(tmp_path / "none" / "file")


LIMITED = """
    import resource, sys
    from gs_lora_peft.io import staged_folder, write_bytes_atomic
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        if sys.argv[2] == "file":
            write_bytes_atomic(sys.argv[1], b"n" * 50_000)
        else:
            with staged_folder(sys.argv[1]) as folder:
                (folder / "small").write_bytes(b"n")
                (folder / "large").write_bytes(b"n" * 50_000)
    except OSError as error:
        print(error.errno, error.filename)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_real_limit_on_file_size(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    inside = target / "old" if kind == "folder" else target
    inside.write_bytes(b"old" * 1000)
    run = subprocess.run(python(LIMITED, target, kind), capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"{errno.EFBIG} "), run.stderr
    assert kind == "folder" or run.stdout == f"{errno.EFBIG} {target}\n"
    assert names(tmp_path) == ["target"]
    assert inside.read_bytes() == b"old" * 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file system of its own")
def test_a_really_full_disk(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from gs_lora_peft.io import write_bytes_atomic
        path = Path(sys.argv[1]) / "file"
        write_bytes_atomic(path, b"o" * 40_000)
        try:
            write_bytes_atomic(path, b"n" * 200_000)
        except OSError as error:
            print(error.errno, path.read_bytes() == b"o" * 40_000, [p.name for p in path.parent.iterdir()])
    """
    shell = 'mount -t tmpfs -o size=128k none "$0" || exit 77; exec "$@"'
    own_root = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, str(tmp_path)]
    try:
        run = subprocess.run([*own_root, *python(code, tmp_path)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip("no file systems of one's own here")
    assert run.stdout.strip() == f"{errno.ENOSPC} True ['file']", run.stderr


# Staged folders


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "tasks" / "task_001"
    with staged_folder(target) as folder:
        assert folder.parent == target.parent
        assert folder.name.startswith(".staging-")
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
        assert not target.exists()
    assert (target / "deep" / "file").read_bytes() == b"x"
    assert names(target.parent) == ["task_001"]


def test_everything_reaches_the_disk_before_the_move(tmp_path, monkeypatch):
    synced, fsync, rename = [], os.fsync, os.rename

    def record(fd):
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    def moved(source, target):
        assert {source.stat().st_ino, (source / "a").stat().st_ino, (source / "d" / "b").stat().st_ino} <= set(synced)
        rename(source, target)
        synced.append("moved")

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", moved)
    with staged_folder(tmp_path / "task") as folder:
        (folder / "a").write_bytes(b"x")
        (folder / "d").mkdir()
        (folder / "d" / "b").write_bytes(b"x")
    assert synced[-2:] == ["moved", tmp_path.stat().st_ino]


def test_an_existing_folder_is_replaced(tmp_path):
    target = tmp_path / "task"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with staged_folder(target) as folder:
        (folder / "new").write_bytes(b"new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["task"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [True, False])
def test_an_error_inside_leaves_everything_as_it_was(tmp_path, error, existed):
    target = tmp_path / "task"
    if existed:
        target.mkdir()
        (target / "old").write_bytes(b"old")

    def fails():
        with staged_folder(target) as folder:
            (folder / "new").write_bytes(b"new")
            raise error

    with pytest.raises(error):
        fails()
    assert names(tmp_path) == (["task"] if existed else [])
    assert not existed or (target / "old").read_bytes() == b"old"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_move_is_undone(tmp_path, monkeypatch, failing):
    target = tmp_path / "task"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    rename, calls = os.rename, []

    def fails_once(source, destination):
        calls.append(source)
        if len(calls) == failing:
            out_of_space()
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError) as caught, staged_folder(target) as folder:
        (folder / "new").write_bytes(b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert names(tmp_path) == ["task"]
    assert names(target) == ["old"]


def test_a_file_or_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("file", "link"):
        with refused(str(tmp_path / name), "a file or a link"), staged_folder(tmp_path / name):
            raise AssertionError("must not be entered")
    assert names(tmp_path) == ["file", "folder", "link"]


def test_long_names(tmp_path):
    name = "n" * 250
    with staged_folder(tmp_path / name):
        write_bytes_atomic(tmp_path / "m".ljust(250, "m"), b"x")
    assert names(tmp_path) == ["m" * 250, name]


HELD = """
    import os, sys, time
    from gs_lora_peft.io import staged_folder
    with staged_folder(sys.argv[1]) as folder:
        (folder / "half").write_bytes(b"x")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(writing.fcntl is None, reason="needs file locks")
def test_only_what_killed_runs_left_is_removed(tmp_path):
    run = subprocess.Popen(python(HELD, tmp_path / "task_001"), stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "ready\n"
        (staged,) = names(tmp_path)
        with staged_folder(tmp_path / "task_002"):
            pass
        assert names(tmp_path) == [staged, "task_002"]  # its owner is alive
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert names(tmp_path) == [staged, "task_002"]
    with staged_folder(tmp_path / "task_001") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["task_001", "task_002"]


def test_files_of_others_are_not_removed(tmp_path):
    kept = [".staging-notes", ".staging-task-0123", "staging-a-0123456789abcdef", ".staging-link-0123456789abcdef"]
    for name in kept[:3]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / kept[3]).symlink_to(tmp_path / kept[0])
    os.mkfifo(tmp_path / ".staging-pipe-0123456789abcdef")
    (tmp_path / ".staging-file-0123456789abcdef").write_bytes(b"x")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted([*kept, ".staging-pipe-0123456789abcdef"])


KILLED = """
    import os, signal, sys
    from gs_lora_peft.io import staged_folder
    calls, call = [], getattr(os, sys.argv[2])
    def killed(*arguments, **options):
        call(*arguments, **options)
        calls.append(arguments)
        if len(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    with staged_folder(sys.argv[1]) as folder:
        for name in ("a", "b"):
            (folder / name).write_bytes(b"new")
        setattr(os, sys.argv[2], killed)
"""


@pytest.mark.skipif(writing.fcntl is None, reason="needs file locks")
@pytest.mark.parametrize(
    ("function", "call", "left"),
    [
        ("fsync", 1, b"old"),  # nothing has moved
        ("rename", 1, None),  # the old folder is out of the way
        ("rename", 2, b"new"),  # the new one is in its place
        ("unlink", 1, b"new"),  # half of the old one is removed
    ],
)
def test_a_replaced_folder_is_whole_or_absent_after_a_kill(tmp_path, function, call, left):
    """Never half a folder; what is left beside it goes with the next call."""
    target = tmp_path / "out"
    target.mkdir()
    for name in ("a", "b"):
        (target / name).write_bytes(b"old")
    run = subprocess.run(python(KILLED, target, function, call), capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    found = [path.read_bytes() for path in target.iterdir()] if target.exists() else None
    assert found == (None if left is None else [left] * 2)
    assert any(name.startswith(".staging-") for name in names(tmp_path))
    with staged_folder(target) as folder:
        (folder / "c").write_bytes(b"next")
    assert names(tmp_path) == ["out"]
    assert names(target) == ["c"]


def test_without_locks_everything_else_works(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "fcntl", None)
    write_bytes_atomic(tmp_path / "file", b"x")
    with staged_folder(tmp_path / "task") as folder:
        (folder / "a").write_bytes(b"x")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["file", "task"]


@pytest.mark.skipif(writing.fcntl is None, reason="needs file locks")
def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    code = """
        import sys
        from gs_lora_peft.io import write_bytes_atomic
        for _ in range(100):
            write_bytes_atomic(sys.argv[1], sys.argv[2].encode() * 10_000)
    """
    writers = [subprocess.Popen(python(code, path, letter)) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            data = path.read_bytes()
            assert len(data) == 10_000
            assert len(set(data)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("private", [True, False])
def test_who_may_read(tmp_path, umask, private):
    """A private file is made for its owner alone, another one by the umask; what is replaced keeps its permissions."""
    path, before = tmp_path / "file", os.umask(umask)
    try:
        write_bytes_atomic(path, b"1", private=private)
        assert path.stat().st_mode & 0o777 == (0o600 if private else 0o666 & ~umask)
        for mode in (0o640, 0o600, 0o666):
            path.chmod(mode)
            write_json_atomic(path, 2, private=private)
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
