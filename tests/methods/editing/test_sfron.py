"""SFR-on: its cycle of steps, the saliency masks, the slow update, what it forgets, resume."""

import pytest
import torch
from errors import refused
from method_trainers import scores_after, trainer_of
from tasks import forget_set, knowing_vit, peft_vit, retain_set
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from gs_lora_peft.methods import get_method
from gs_lora_peft.methods.editing.sfron import adaptive_cross_entropy
from gs_lora_peft.methods.importance import importances

OWN = {"max_grad_norm": 0.0, "num_train_epochs": 10}


@pytest.mark.parametrize("adaptivity", [0.0, 0.5, 1.0])
def test_the_adaptive_loss(adaptivity):
    """In float64, and by its gradient: the coefficients have none."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    losses = [cross_entropy(row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
    weights = [1 / loss.item() ** adaptivity for loss in losses]
    slow = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    fast = adaptive_cross_entropy(logits, labels, adaptivity)
    assert fast.item() == pytest.approx(slow.item())
    torch.testing.assert_close(*(torch.autograd.grad(one, logits)[0] for one in (fast, slow)))


class Gradients(TrainerCallback):
    """What each optimizer step gets."""

    def __init__(self, weights):
        self.weights, self.seen = weights, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(torch.cat([w.grad.flatten() for w in self.weights if w.grad is not None]))


def test_a_cycle_of_steps(tmp_path):
    """One step in three goes away from the samples to forget: on salient weights alone, with a bounded norm."""
    model = knowing_vit()
    trainer = trainer_of("sfron", model, tmp_path, {"retain_steps": 2}, **{**OWN, "num_train_epochs": 2})
    trainer.add_callback(seen := Gradients(trainer.trained.parameters))
    salient = torch.cat(
        [
            (f >= r).flatten()
            for f, r in zip(*(importances(trainer.method, part()) for part in (forget_set, retain_set)), strict=True)
        ]
    )
    assert 0.1 < salient.float().mean() < 0.9
    trainer.train()
    for step, gradient in enumerate(seen.seen):
        if step % 3 == 0:
            assert not gradient[~salient].any()
            assert gradient.norm() <= 7.0 * (1 + 1e-5)
        else:
            assert gradient[~salient].any()
    assert len(seen.seen) == 8
    assert seen.seen[0].norm() == pytest.approx(7.0, rel=1e-4)


def test_the_slow_update_goes_a_part_of_the_way(tmp_path):
    """At the end of a cycle, from the weights at its start."""
    ends = []
    for rate in (1.0, 0.25):
        trainer = trainer_of("sfron", knowing_vit(), tmp_path, {"slow_rate": rate}, max_steps=2, **OWN)
        trainer.train()
        ends.append([weight.detach() for weight in trainer.trained.parameters])
    for start, whole, part in zip(knowing_vit().parameters(), *ends, strict=True):
        torch.testing.assert_close(part, start.detach() + 0.25 * (whole - start.detach()))


@pytest.mark.parametrize("hyper_parameters", [{}, {"official_compat": True}])
def test_it_forgets_and_keeps(tmp_path, hyper_parameters):
    trainer = trainer_of("sfron", knowing_vit(), tmp_path, hyper_parameters, learning_rate=3e-3, **OWN)
    forgotten, retained = scores_after(trainer)
    assert forgotten < 0.2
    assert retained > 0.9


def test_an_adapter_forgets_half(tmp_path):
    """With the same budget: 0.50, and 0.91 of the kept classes."""
    forgotten, retained = scores_after(trainer_of("sfron", peft_vit(), tmp_path, learning_rate=2e-2, **OWN))
    assert forgotten < 0.7
    assert retained > 0.8


def test_it_is_resumed_bit_for_bit(tmp_path):
    """In the middle of a cycle, whose first weights the checkpoint holds."""
    method = {"retain_steps": 4, "slow_rate": 0.5}
    runs = []
    for folder, start in ((tmp_path / "one", None), (tmp_path / "two", str(tmp_path / "one" / "checkpoint-7"))):
        model = knowing_vit(dropout=0.1)
        settings = {"save_strategy": "steps", "save_steps": 7, "max_steps": 10, "max_grad_norm": 0.0}
        trainer = trainer_of("sfron", model, folder, method, **settings)
        trainer.train(resume_from_checkpoint=start)
        runs.append(model.state_dict())
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("forget_scale", 0.0), ("retain_steps", 0), ("adaptivity", -1.0), ("slow_rate", 0.0), ("max_forget_norm", 0.0)],
)
def test_values_out_of_range_are_refused(name, value):
    with refused(name, value):
        get_method("sfron", **{name: value})
