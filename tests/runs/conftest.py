"""Fixtures of the run tests."""

import shutil

import pytest
import run_cases as cases


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Folder of the pre-trained tiny classifier."""
    folder = tmp_path_factory.mktemp("base") / "tiny-vit"
    cases.pretrain(folder)
    return folder


@pytest.fixture(scope="session")
def data():
    return cases.make_data()


@pytest.fixture(scope="session")
def finished(base, data, tmp_path_factory):
    """A run that nothing disturbed: folder, forgetter. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    forgetter = cases.make_forgetter(base, folder, data)
    forgetter.run(cases.requests())
    return folder, forgetter


@pytest.fixture(scope="session")
def first_task(base, data, tmp_path_factory):
    """Folder of a run with one task. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("first") / "run"
    cases.make_forgetter(base, folder, data).run(cases.requests(["bumblebee"]))
    return folder


@pytest.fixture
def one_task(first_task, tmp_path):
    """A folder with one task, for a test to work in."""
    return shutil.copytree(first_task, tmp_path / "one")
