"""Fixtures of the walks through public bug reports."""

import pytest
import report_cases as cases


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Folder of the classifier and its image processor."""
    folder = tmp_path_factory.mktemp("reports") / "tiny-vit"
    cases.pretrain(folder)
    return folder


@pytest.fixture(scope="session")
def trained(base, tmp_path_factory):
    """A model that has forgotten one kind. Not to be changed by a test."""
    trainer = cases.trainer_for(cases.adapted(base), tmp_path_factory.mktemp("trained"))
    trainer.train()
    return trainer.model.eval()


@pytest.fixture(scope="session")
def plain(trained):
    """The adapter that a training without anything special gives."""
    return cases.weights(trained, "lora_")
