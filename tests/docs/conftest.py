"""Fixtures of the documentation's tests: the working directory of a page, and a Hub on this machine."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "hub"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder with all that the pages name. Not to be changed: a page works in a copy."""
    from docs_world import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub on this machine, in which this process may write to the organisation `org`."""
    from huggingface_hub import constants, hf_api
    from loopback import OWNER, LoopbackHub, api

    running = LoopbackHub(tmp_path / "hub")
    monkeypatch.setitem(api.USERS, OWNER, api.User("me", ("org",)))
    monkeypatch.setattr(constants, "ENDPOINT", running.address)
    template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", running.address)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def clinic(world, tmp_path_factory):
    """A run of two requests of one step each. Not to be changed."""
    from docs_world import base_model, people, processor

    from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainingArguments

    folder = tmp_path_factory.mktemp("clinic") / "run"
    here = Path.cwd()
    os.chdir(world)  # the ledger names the model as the pages do
    try:
        args = GSLoraTrainingArguments(str(folder), max_steps=1, sparsity="none")
        forgetter = ContinualForgetter(base_model(), people(), folder, args=args, processing_class=processor())
        forgetter.run([ForgetRequest(["person_07"]), ForgetRequest(["person_11", "person_02"])])
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def short_trainings(monkeypatch):
    """Trainings end after two steps: what they reach is not what these tests are about."""
    from transformers import TrainerCallback

    from gs_lora_peft import ForgettingTrainer

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= 2

    make = ForgettingTrainer.__init__

    def short(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self.add_callback(Stop())

    monkeypatch.setattr(ForgettingTrainer, "__init__", short)


@pytest.fixture
def at_home(world, tmp_path, monkeypatch):
    """A copy of the world as working directory."""
    folder = shutil.copytree(world, tmp_path / "home")
    monkeypatch.chdir(folder)
    return folder
