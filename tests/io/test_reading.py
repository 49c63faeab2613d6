"""Reading files that may be damaged or come from elsewhere."""

import errno
import hashlib
import json
import os

import pytest
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.io import file_mismatch, parse_json, read_limited, reading, safe_join, sha256_of

# Reading


def test_hash(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_reading_is_limited(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", 5) == b"12345"
    with refused(str(tmp_path / "file"), "larger than 4 bytes"):
        read_limited(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with refused(str(other), "not a regular file"):
            read_limited(other, 5)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (b"[NaN]", "JSON number", "NaN"),
        (b"[-Infinity]", "JSON number", "-Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "JSON key", "c"),
        (b"[" * 100_000, "JSON text", "nested too deeply"),
    ],
)
def test_json_is_strict(text, name, value):
    with refused(name, value):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b'"\xff"', UnicodeDecodeError),
        (b"{", json.JSONDecodeError),
        (b"", json.JSONDecodeError),
        (b"9" * 5000, ValueError),  # more digits than Python makes a number of
    ],
)
def test_what_is_not_json(text, kind):
    with pytest.raises(kind):
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
    with refused("path", path):
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
        with refused("path", path):
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
    # What came over Xet is kept once for all repositories.
    (tmp_path / "blobs" / "ab").mkdir(parents=True)
    (tmp_path / "blobs" / "ab" / "abcd").write_bytes(b"y")
    (repository / "blobs" / "def").symlink_to("../../blobs/ab/abcd")
    (snapshot / "tasks" / "shared").symlink_to("../../../blobs/def")
    assert safe_join(snapshot, "tasks/good").read_bytes() == b"x"
    assert safe_join(snapshot, "tasks/shared").read_bytes() == b"y"
    for path in ("bad", "worse"):
        with refused("path", path):
            safe_join(snapshot, path)
    plain = tmp_path / "other" / "snapshots" / "rev"
    plain.mkdir(parents=True)
    (plain / "link").symlink_to(repository / "blobs" / "abc")
    with refused("path", "link"):
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
    path, whole = tmp_path / "adapter.safetensors", b"adapter" * 100
    path.write_bytes(whole)
    expected = sha256_of(path)
    assert file_mismatch(path, expected) is None
    for other in (b"", whole[:5], whole[:-1], whole[:-1] + b"x", whole + b"x"):
        path.write_bytes(other)
        said = file_mismatch(path, expected)
        assert sha256_of(path)[:12] in said
        assert expected[:12] in said
    path.unlink()
    assert file_mismatch(path, expected) == "it is missing"
    path.mkdir()
    assert file_mismatch(path, expected) == "it is not a regular file"


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(reading, "sha256_of", denied)
    assert file_mismatch(tmp_path / "file", "0" * 64) == "it cannot be read (Permission denied)"
