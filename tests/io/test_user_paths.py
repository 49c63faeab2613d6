"""Paths as users write them."""

import os
from pathlib import Path, PurePosixPath

import pytest
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.io import as_path


class Folder:
    """An os.PathLike of another library."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("make", [str, Path, PurePosixPath, Folder])
def test_home_and_path_like(make, monkeypatch, tmp_path):
    """`~` is the home folder, whatever kind of path holds it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path(make("~/runs/x"), "folder") == tmp_path / "runs" / "x"
    assert as_path(make("runs"), "folder") == Path("runs")


@pytest.mark.parametrize(
    "bad", [None, True, False, 5, 1.5, b"runs", ["runs"], "", "  ", "a\0b", "\ud800", Folder(b"x")]
)
def test_what_is_no_path(bad):
    """The error has the argument and the value."""
    with refused("folder", bad):
        as_path(bad, "folder")


@given(st.text() | st.binary() | st.none() | st.integers() | st.floats())
def test_any_value_is_a_path_or_refused(value):
    """Nothing else is raised, and what is accepted can be asked for on this system."""
    try:
        path = as_path(value, "folder")
    except InvalidInputError:
        return
    assert not os.path.exists(path / "surely not there")
