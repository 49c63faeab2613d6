import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gs_lora_peft import storage
from gs_lora_peft.storage import (
    content_problem,
    exclusive_lock,
    locks,
    parse_json,
    read_limited,
    reading,
    remove_abandoned,
    safe_join,
    sha256_of,
    staged_folder,
    write_bytes_atomic,
    write_json_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def out_of_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ROOT = Path(storage.__file__).parent.parent
# What the package imports on its own takes seconds and plays no part here, so other processes go round it.
LIGHT_IMPORTS = f"""
import sys, types
sys.modules["gs_lora_peft"] = types.ModuleType("gs_lora_peft")
sys.modules["gs_lora_peft"].__path__ = [{str(ROOT)!r}]
"""


def python(code, *arguments):
    return [sys.executable, "-c", LIGHT_IMPORTS + textwrap.dedent(code), *map(str, arguments)]


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
    with pytest.raises(OSError, match=r"could not write file .*unchanged.*free some space and run again") as caught:
        write_bytes_atomic(path, b"new")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
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
    with pytest.raises(FileNotFoundError, match="could not write file"):
        write_bytes_atomic(tmp_path / "none" / "file", b"x")


LIMITED = """
    import resource, sys
    from gs_lora_peft.storage import staged_folder, write_bytes_atomic
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        if sys.argv[2] == "file":
            write_bytes_atomic(sys.argv[1], b"n" * 50_000)
        else:
            with staged_folder(sys.argv[1]) as folder:
                (folder / "small").write_bytes(b"n")
                (folder / "large").write_bytes(b"n" * 50_000)
    except OSError as error:
        print(error.errno, error)
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
    assert kind == "folder" or "could not write target" in run.stdout
    assert names(tmp_path) == ["target"]
    assert inside.read_bytes() == b"old" * 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file system of its own")
def test_a_really_full_disk(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from gs_lora_peft.storage import write_bytes_atomic
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
    with pytest.raises(OSError, match=r"could not write task .*unchanged"), staged_folder(target) as folder:
        (folder / "new").write_bytes(b"new")
    assert names(tmp_path) == ["task"]
    assert names(target) == ["old"]


def test_a_file_or_link_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("file", "link"):
        with pytest.raises(ValueError, match="is a file or a link"), staged_folder(tmp_path / name):
            raise AssertionError("must not be entered")
    assert names(tmp_path) == ["file", "folder", "link"]


def test_long_names(tmp_path):
    name = "n" * 250
    with staged_folder(tmp_path / name):
        write_bytes_atomic(tmp_path / "m".ljust(250, "m"), b"x")
    assert names(tmp_path) == ["m" * 250, name]


HELD = """
    import os, sys, time
    from gs_lora_peft.storage import staged_folder
    with staged_folder(sys.argv[1]) as folder:
        (folder / "half").write_bytes(b"x")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(locks.fcntl is None, reason="needs file locks")
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


def test_a_run_killed_between_the_two_moves_is_mended(tmp_path):
    old = tmp_path / ".replaced-task-0123456789abcdef"
    old.mkdir()
    (old / "old").write_bytes(b"old")
    folder = staged_folder(tmp_path / "task")
    folder.__enter__()
    assert names(tmp_path / "task") == ["old"]
    folder.__exit__(None, None, None)
    assert names(tmp_path / "task") == []
    old.mkdir()
    with staged_folder(tmp_path / "task"):
        pass
    assert names(tmp_path) == ["task"]


def test_without_locks_everything_else_works(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with exclusive_lock(tmp_path / "lock"), exclusive_lock(tmp_path / "lock"):
        write_bytes_atomic(tmp_path / "file", b"x")
    with staged_folder(tmp_path / "task") as folder:
        (folder / "a").write_bytes(b"x")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["file", "task"]


@pytest.mark.skipif(locks.fcntl is None, reason="needs file locks")
def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    code = """
        import sys
        from gs_lora_peft.storage import write_bytes_atomic
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


# Reading


def test_hash(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_reading_is_limited(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_limited(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_limited(other, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' is given twice"),
        (b"[" * 100_000, "nested"),
        (b'"\xff"', "utf-8"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
        (b"9" * 5000, "digits"),
    ],
)
def test_strict_json(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)


# Paths


@pytest.mark.parametrize("path", ["a", "a/b.c", "tasks/task_001/adapter_model.safetensors", "..a/b..", "ü/日本"])
def test_good_paths(tmp_path, path):
    assert safe_join(tmp_path, path) == tmp_path / path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../a", "a/..", "a/../../b", ".", "./a", "a/./b", "a//b", "a/", "//a/b"),
        *("\\a", "..\\a", "a\\..\\b", "C:\\a", "C:/a", "c:a", "\\\\server\\a", "a\0b", "a\nb"),
        *(None, 3, b"a", ["a"], "\ud800"),
    ],
)
def test_bad_paths(tmp_path, path):
    with pytest.raises(ValueError, match=r"(?s)The path .* is not accepted because .*; expected a relative path"):
        safe_join(tmp_path, path)


def test_links_are_followed(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "folder-outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "real").mkdir()
    (folder / "inside").symlink_to("real")
    (folder / "out").symlink_to(outside)
    (folder / "file").symlink_to(outside / "file")
    (folder / "loop").symlink_to("loop")
    assert safe_join(folder, "inside/x") == folder / "inside" / "x"
    (tmp_path / "alias").symlink_to(folder)
    assert safe_join(tmp_path / "alias", "real/x") == tmp_path / "alias" / "real" / "x"
    for path in ("out/x", "out", "file"):
        with pytest.raises(ValueError, match="symbolic link"):
            safe_join(folder, path)


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert safe_join(".", "a") == safe_join("", "a")


def test_the_hub_cache_links_to_its_blobs(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "tasks").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_bytes(b"x")
    (snapshot / "tasks" / "good").symlink_to("../../../blobs/abc")
    (snapshot / "bad").symlink_to("../../refs")
    (snapshot / "worse").symlink_to("/etc/hostname")
    assert safe_join(snapshot, "tasks/good").read_bytes() == b"x"
    for path in ("bad", "worse"):
        with pytest.raises(ValueError, match="symbolic link"):
            safe_join(snapshot, path)
    plain = tmp_path / "other" / "snapshots" / "rev"
    plain.mkdir(parents=True)
    (plain / "link").symlink_to(repository / "blobs" / "abc")
    with pytest.raises(ValueError, match="symbolic link"):
        safe_join(plain, "link")


@given(st.text(alphabet="ab./\\:~\0 ", max_size=12))
def test_no_path_leaves_the_folder(path):
    root = os.path.realpath("/nowhere/root")
    try:
        joined = safe_join(root, path)
    except ValueError:
        return
    assert os.path.realpath(joined).startswith(root + os.sep)


# What is wrong with a file


def test_content_problems(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"w": torch.arange(100.0)}, path)
    whole, expected = path.read_bytes(), sha256_of(path)
    assert content_problem(path, expected) is None

    for length in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert content_problem(path, expected).startswith(f"truncated ({length} bytes"), length
    assert f"its header promises {len(whole)} bytes" in content_problem(path, expected)

    path.write_bytes(whole[:-1] + b"x")
    assert content_problem(path, expected).startswith(f"changed ({len(whole)} bytes")
    assert content_problem(path, expected, {sha256_of(path): "b"}).startswith("swapped, it has the content of b")
    for junk in (b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}", json.dumps({"w": 1}).encode()):
        path.write_bytes(junk)
        assert content_problem(path, expected).startswith("changed"), junk

    path.unlink()
    assert content_problem(path, expected) == "it is missing"
    path.mkdir()
    assert content_problem(path, expected) == "it is not a regular file"


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(reading, "sha256_of", denied)
    assert content_problem(tmp_path / "file", "0" * 64) == "it cannot be read (Permission denied)"
