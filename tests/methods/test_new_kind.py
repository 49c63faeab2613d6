"""A new kind of model is one file with its objective and `Kind`, and one line in `OBJECTIVES`."""

import sys
import textwrap

import pytest
import torch
from errors import refused
from tasks import forget_set, peft_vit, scoring_set, trainer_for, vit

from gs_lora_peft.objectives import OBJECTIVES, ClassificationObjective, kind_of, objective_for

MODULE = '''
    """A classifier whose loss is a margin between the logit of the right class and the others."""

    import torch

    from gs_lora_peft.objectives import Kind, Objective, ObjectiveOutput, identity


    class MarginObjective(Objective):
        def training_step(self, model, inputs, global_mean=identity):
            logits, half = model(pixel_values=inputs["pixel_values"]).logits, len(inputs["labels"]) // 2
            leads = self.leads(logits, inputs["labels"])
            kept, gone = torch.relu(1 - leads[:half]).mean(), torch.relu(1 + leads[half:]).mean()
            return ObjectiveOutput(kept + gone, kept.detach(), gone.detach(), logits=logits)

        def evaluation_step(self, model, inputs):
            logits = model(pixel_values=inputs["pixel_values"]).logits
            return -self.leads(logits, inputs["labels"]).mean(), {"logits": logits}

        def leads(self, logits, labels):
            own = logits.gather(1, labels[:, None])
            return (own - logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


    KIND = Kind(fits=lambda model: hasattr(model, "margin"), make=lambda model, args, task: MarginObjective())
'''


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    (tmp_path / "kinds_of_a_test.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(OBJECTIVES)
    OBJECTIVES.clear()
    OBJECTIVES.update({"margin": "kinds_of_a_test:KIND", **before})
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)
    sys.modules.pop("kinds_of_a_test", None)


def test_it_trains_and_is_evaluated(tmp_path):
    """The first kind that fits is taken, and no other code knows of it."""
    model = peft_vit()
    model.margin = True
    settings = {"num_train_epochs": 8, "eval_strategy": "epoch", "learning_rate": 3e-2, "sparsity": "none"}
    trainer = trainer_for(model, tmp_path, kwargs={"eval_dataset": scoring_set()}, **settings)
    assert type(trainer.objective).__name__ == "MarginObjective"
    trainer.train()
    last = [row for row in trainer.state.log_history if "eval_loss" in row][-1]
    assert last["eval_acc_forget"] < 0.3
    assert last["eval_h_mean"] > 0.8


def test_a_kind_is_chosen_by_its_name(tmp_path):
    """For a model whose class does not show its kind."""
    trainer = trainer_for(peft_vit(), tmp_path, kwargs={"objective": "margin"})
    assert type(trainer.objective).__name__ == "MarginObjective"
    assert isinstance(trainer_for(peft_vit(), tmp_path).objective, ClassificationObjective)


def test_a_kind_that_does_not_exist(tmp_path):
    """The error lists the known names."""
    with refused("objective", "segments") as error:
        trainer_for(peft_vit(), tmp_path, kwargs={"objective": "segments"})
    assert "classification" in error.value.expected


def test_the_last_kind_fits_every_model(tmp_path):
    """Every model gets a kind, and the last one checks the head."""
    assert list(OBJECTIVES)[-1] == "classification"
    assert kind_of(torch.nn.Linear(2, 2)) is OBJECTIVES["classification"]
    args = trainer_for(peft_vit(), tmp_path, kwargs={"forget_dataset": forget_set()}).args
    assert isinstance(objective_for(vit(), args), ClassificationObjective)
