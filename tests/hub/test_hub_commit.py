"""The last gate before files leave the machine. The commits themselves are tested in `tests/hub`."""

import pytest
from errors import refused
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from gs_lora_peft.hub.client.commit import RemoteHead, publishable_files
from gs_lora_peft.io import sha256_of


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_what_may_leave(tmp_path):
    """safetensors, JSON, Markdown and PNG, at any depth."""
    fill(tmp_path, "README.md", "a/b/c.safetensors", "a/d.json", "e.png")
    assert publishable_files(tmp_path) == ["README.md", "a/b/c.safetensors", "a/d.json", "e.png"]


@pytest.mark.parametrize(
    "name", ["x.bin", "a/x.pt", "x", "x.json.bak", ".hidden.json", ".git/x.json", "a/x.PNG", "x.txt"]
)
def test_what_may_not(tmp_path, name):
    """Everything else stops the whole publication, by name."""
    fill(tmp_path, "README.md", name)
    with refused("file to publish", name.split("/x.json")[0]):
        publishable_files(tmp_path)


@pytest.mark.parametrize("target", ["file.json", "folder"])
def test_links_may_not(tmp_path, target):
    """A link could lead to anything."""
    fill(tmp_path, "there/file.json", "there/folder/x.json", "out/README.md")
    (tmp_path / "out" / "link.json").symlink_to(tmp_path / "there" / target)
    with refused("file to publish", "link.json"):
        publishable_files(tmp_path / "out")


def test_a_commit_is_recognised(tmp_path):
    """Whether a repository holds just what was sent, told from its hashes, of LFS files and of others."""
    fill(tmp_path, "a.json", "b.safetensors")
    lfs = {"size": 1, "oid": sha256_of(tmp_path / "b.safetensors"), "pointerSize": 1}
    files = {
        "a.json": RepoFile(path="a.json", size=1, oid=git_hash(b"a.json")),
        "b.safetensors": RepoFile(path="b.safetensors", size=1, oid="0" * 40, lfs=lfs),
        "old.png": RepoFile(path="old.png", size=1, oid="0" * 40),
    }
    head = RemoteHead("me/x", None, "0" * 40, files)
    assert head.holds(tmp_path)
    assert not head.holds(tmp_path, removed=["old.png"])
    for name in ("a.json", "b.safetensors"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"other")
        assert not head.holds(tmp_path)
        (tmp_path / name).write_bytes(before)
    fill(tmp_path, "new.json")
    assert not head.holds(tmp_path)


def test_a_new_repository(tmp_path):
    """One in which only the Hub has put something."""
    made = {name: RepoFile(path=name, size=1, oid="0" * 40) for name in (".gitattributes", "README.md", "config.json")}
    assert RemoteHead("me/x", None, None, {}).is_new
    assert not RemoteHead("me/x", None, "0" * 40, made).is_new
    del made["config.json"]
    assert RemoteHead("me/x", None, "0" * 40, made).is_new
