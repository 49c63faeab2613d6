"""Task arithmetic: the negated change, of weights and of an adapter; when it is scored; resume."""

from dataclasses import dataclass

import pytest
import torch
from errors import refused
from method_trainers import differences_if_resumed, scores_after, trainer_of
from tasks import arguments, forget_set, knowing_vit, peft_vit, retain_set
from torch.nn.functional import cross_entropy

from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer, Method


@dataclass(kw_only=True)
class Learning(Method):
    """Learns the samples to forget."""

    name = "learning"

    def loss(self, model, inputs, output):
        return cross_entropy(*self.forget_half(inputs, output))


def learned(build, folder):
    model = build()
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set()}
    ForgettingTrainer(model, arguments(folder, Learning()), method=Learning(), **data).train()
    return model


def test_weights_go_as_far_the_other_way(tmp_path):
    start, there, model = knowing_vit(), learned(knowing_vit, tmp_path), knowing_vit()
    trainer_of("task_arithmetic", model, tmp_path, {"scaling": 1.5}).train()
    for before, other, now in zip(start.parameters(), there.parameters(), model.parameters(), strict=True):
        assert not torch.equal(before, other)
        torch.testing.assert_close(now, before - 1.5 * (other - before))


def test_the_change_that_an_adapter_makes_is_negated(tmp_path):
    """By one factor of each pair: their product is the change."""
    there, model = learned(peft_vit, tmp_path), peft_vit()
    trainer_of("task_arithmetic", model, tmp_path, {"scaling": 1.5}).train()
    changes = [
        {name: layer.get_delta_weight("default") for name, layer in one.named_modules() if hasattr(layer, "lora_A")}
        for one in (there, model)
    ]
    assert changes[0]
    for name, change in changes[0].items():
        assert change.any()
        torch.testing.assert_close(changes[1][name], -1.5 * change)


def test_the_negated_weights_are_scored_while_it_trains(tmp_path):
    """The last evaluation in the training is that of the model it leaves, and training goes on undisturbed."""
    settings = {"learning_rate": 5e-3, "num_train_epochs": 2}
    models = [knowing_vit(), knowing_vit()]
    scored, silent = (
        trainer_of("task_arithmetic", model, tmp_path, eval_strategy=strategy, **settings)
        for model, strategy in zip(models, ("epoch", "no"), strict=True)
    )
    scored.train()
    silent.train()
    last = [row for row in scored.state.log_history if "eval_loss" in row][-1]
    assert last["eval_loss"] == pytest.approx(scored.evaluate()["eval_loss"])
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in models), strict=True))


def test_it_forgets_with_weights_but_not_with_an_adapter(tmp_path):
    """A fresh adapter changes too little of a model that is sure of the classes already: Acc_f stays 1.00."""
    rate = {"learning_rate": 5e-3, "num_train_epochs": 10}
    forgotten, retained = scores_after(trainer_of("task_arithmetic", knowing_vit(), tmp_path, **rate))
    assert forgotten < 0.2
    assert retained > 0.9
    rate = {"learning_rate": 5e-2, "num_train_epochs": 5}
    assert scores_after(trainer_of("task_arithmetic", peft_vit(), tmp_path, {"scaling": 3.0}, **rate))[0] > 0.9


def test_weights_are_resumed_bit_for_bit(tmp_path):
    """Checkpoints hold the weights that train, not the negated ones; for an adapter, see test_every_method.py."""
    assert not differences_if_resumed("task_arithmetic", knowing_vit, tmp_path)


def test_what_it_cannot_do_is_refused(tmp_path):
    with refused("scaling", 0.0):
        get_method("task_arithmetic", scaling=0.0)
    model = peft_vit()
    for name, matrix in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(matrix)
    with refused("adapter", "default"):
        trainer_of("task_arithmetic", model, tmp_path)
