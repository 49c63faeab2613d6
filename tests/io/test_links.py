"""Links inside a folder: refused, and never followed by what removes."""

import pytest
from errors import refused

from gs_lora_peft.io import refuse_links, remove_inside


@pytest.fixture
def precious(tmp_path):
    """A folder with something in it that nobody may touch."""
    folder = tmp_path / "precious"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("mine")
    return folder


def is_whole(precious):
    return (precious / "deep" / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["work", "work/deep", "work/deep/er", "gone"])
@pytest.mark.parametrize("to", ["folder", "file", "nothing"])
def test_links_are_refused(tmp_path, precious, place, to):
    """At every depth, whatever they lead to; what has no name among those given is not looked at."""
    run = tmp_path / "run"
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to({"folder": precious, "file": precious / "deep" / "file", "nothing": tmp_path / "no"}[to])
    with refused(str(run / place), "a symbolic link"):
        refuse_links(run, ["tasks", "work", "gone"])
    refuse_links(run, ["tasks", "else"])


def test_what_is_not_refused(tmp_path, precious):
    """A folder that is a link itself, one that does not exist, and the files of a snapshot in the cache."""
    (tmp_path / "run").symlink_to(precious)
    refuse_links(tmp_path / "run", ["deep"])
    refuse_links(tmp_path / "none", ["deep"])
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "0").touch()
    (snapshot / "file").symlink_to("../../blobs/0")
    refuse_links(snapshot, ["file"])
    (snapshot / "out").symlink_to(precious)
    with refused(str(snapshot / "out"), "a symbolic link"):
        refuse_links(snapshot, ["out"])


@pytest.mark.parametrize("link", ["work", "work/task", "work/task/inner"])
def test_nothing_is_removed_through_a_link(tmp_path, precious, link):
    """Neither what a link leads to nor what is below it; a folder without links goes, with the links in it."""
    run = tmp_path / "run"
    (run / link).parent.mkdir(parents=True)
    (run / link).symlink_to(precious)
    for path in ("work/task", "work/deep", "work/task/deep", "work"):
        remove_inside(run, run / path)
        assert is_whole(precious)
    assert (run / "work").exists() == (link == "work")


def test_a_folder_behind_a_link_is_worked_in(tmp_path, precious):
    """The folder that must not be left may be a link itself."""
    (tmp_path / "run").symlink_to(precious)
    remove_inside(tmp_path / "run", tmp_path / "run" / "deep")
    assert list(precious.iterdir()) == []
