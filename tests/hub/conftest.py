"""Fixtures of the Hub tests: a Hub on this machine, clients in processes of their own, and a run to publish."""

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.append(os.fspath(Path(__file__).resolve().parents[1] / "runs"))

import pytest
from client_process import Client
from loopback import LoopbackHub

_numbers = itertools.count()


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory):
    """The Hub of all tests: clients read its address once, so it must stay."""
    hub = LoopbackHub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.stop()


@pytest.fixture
def hub(running_hub):
    """The Hub, with nothing wrong and no request seen; give each test its own repository (`repo_id`)."""
    running_hub.reset()
    yield running_hub
    broken = running_hub.broken
    running_hub.reset()
    assert broken == []


@pytest.fixture
def repo_id(request):
    """The id of a repository that no other test uses; it is not there yet."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    return f"me/{name[:60].strip('-')}-{next(_numbers)}"


@pytest.fixture
def new_client(running_hub, tmp_path):
    """Starts further clients, each with its own `HF_HOME` unless told otherwise."""
    started = []

    def start(home=None, **options):
        started.append(Client(running_hub.address, home or tmp_path / f"home-{len(started)}", **options))
        return started[-1]

    yield start
    for client in started:
        client.close()


def one_client(**options):
    """A fixture: a client that stays for the whole session, because what it imports takes seconds."""

    @pytest.fixture(scope="session")
    def fixture(running_hub, tmp_path_factory):
        started = Client(running_hub.address, tmp_path_factory.mktemp("home"), **options)
        yield started
        started.close()

    return fixture


client = one_client()  # the client of most tests, without Xet
xet_client = one_client(HF_HUB_DISABLE_XET=None)  # with Xet if `hf_xet` is installed; also another user
stock_client = one_client(refuse="gs_lora_peft")  # as if this package were not installed


@pytest.fixture(scope="session")
def base(running_hub, tmp_path_factory):
    """Folder of the tiny classifier and its processor, which are on the Hub too."""
    import hub_cases as cases

    folder = tmp_path_factory.mktemp("base") / "tiny-vit"
    cases.pretrain(folder)
    running_hub.create(cases.BASE_ID, cases.read(folder))
    return folder


@pytest.fixture(scope="session")
def finished(base, tmp_path_factory):
    """A run with three tasks: its folder, and what the model says of the probe. Not to be changed by a test."""
    import hub_cases as cases

    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, cases.logits(cases.forget(base, folder, cases.REQUESTS).model)


@pytest.fixture(scope="session")
def first_task(base, tmp_path_factory):
    """A run with one task: its folder, and what the live model said when its training ended."""
    import hub_cases as cases

    folder, at_end = tmp_path_factory.mktemp("first") / "run", cases.LogitsAtEnd()
    cases.forget(base, folder, cases.REQUESTS[:1], callbacks=[at_end])
    return folder, at_end.seen[0]


@pytest.fixture
def run_folder(finished, tmp_path):
    """A run with three tasks, for a test to work in."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def short_run(first_task, tmp_path):
    """A run with one task, for a test to work in."""
    return shutil.copytree(first_task[0], tmp_path / "short")
