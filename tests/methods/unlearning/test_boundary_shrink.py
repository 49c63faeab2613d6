"""Boundary shrink: FGSM finds the nearest other class on the model before the task."""

import copy

import pytest
import torch
from errors import refused
from tasks import knowing_vit, peft_vit
from torch.nn import functional as F
from unlearning_cases import joint_batch, loss_on, move, resumed_differs, trained_scores, trainer_of

from gs_lora_peft.methods import get_method


def nearest64(pixels, labels, epsilon, official):
    """The labels of one sample after another, in float64."""
    model, found = knowing_vit().double().eval(), []
    for x, label in zip(pixels.double(), labels, strict=True):
        x = x[None].requires_grad_()
        F.cross_entropy(model(pixel_values=x).logits, label[None]).backward()
        moved = x.detach() + epsilon * x.grad.sign()
        if official:
            moved = torch.round(moved.clamp(0, 1) * 255) / 255
        row = model(pixel_values=moved).logits[0].tolist()
        candidates = range(6) if official else [c for c in range(6) if c != label]
        found.append(max(candidates, key=lambda c, row=row: row[c]))
    return torch.tensor(found)


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
@pytest.mark.parametrize("official", [False, True])
def test_the_labels_and_the_loss(tmp_path, build, official):
    """Of the model before the task, although another one trains; of the half to forget alone."""
    trainer = trainer_of("boundary_shrink", build(), tmp_path, hyper={"epsilon": 0.3, "official_compat": official})
    move(trainer, std=0.2)
    batch = joint_batch()
    labels = nearest64(batch["pixel_values"][4:], batch["labels"][4:], 0.3, official)
    logits = copy.deepcopy(trainer.model).double().eval()(pixel_values=batch["pixel_values"].double()).logits
    loss = loss_on(trainer, batch)
    assert loss.item() == pytest.approx(F.cross_entropy(logits[4:], labels).item(), rel=1e-4)
    if not official:
        assert not (labels == batch["labels"][4:]).any()


def test_the_gradient_is_that_of_the_model_that_trains(tmp_path):
    """FGSM between forward and backward leaves weights, modes and gradients as they are."""
    trainer, batch = trainer_of("boundary_shrink", knowing_vit(), tmp_path), joint_batch()
    move(trainer)
    weights = trainer.trained.parameters
    before = [weight.detach().clone() for weight in weights]
    found = torch.autograd.grad(loss_on(trainer, batch), weights, allow_unused=True)
    labels = nearest64(batch["pixel_values"][4:], batch["labels"][4:], 0.1, official=False)
    logits = trainer.model(pixel_values=batch["pixel_values"]).logits
    exact = torch.autograd.grad(F.cross_entropy(logits[4:], labels), weights, allow_unused=True)
    torch.testing.assert_close(found, exact)
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    assert all(weight.grad is None for weight in weights)
    assert trainer.model.training


def test_forgets_and_keeps(tmp_path):
    """Without samples to keep."""
    settings = {"learning_rate": 3e-3, "num_train_epochs": 8}
    forget, retain = trained_scores("boundary_shrink", knowing_vit(), tmp_path, **settings)
    assert forget < 0.5
    assert retain > 0.8


def test_of_two_classes_one_may_become_the_other(tmp_path):
    """An adapter forgets one of them and finds the other in its place: the nearest class may be one to forget."""
    settings = {"learning_rate": 1e-2, "num_train_epochs": 12}
    forget, retain = trained_scores("boundary_shrink", peft_vit(), tmp_path, **settings)
    assert 0.2 < forget < 0.8
    assert retain > 0.8


def test_officially_nothing_is_forgotten_on_normalised_inputs(tmp_path):
    """The clamp destroys them, and a class that FGSM does not change is learned again."""
    settings = {"learning_rate": 2e-3, "num_train_epochs": 6}
    forget, _ = trained_scores("boundary_shrink", knowing_vit(), tmp_path, hyper={"official_compat": True}, **settings)
    assert forget > 0.5


def test_it_is_resumed_bit_for_bit(tmp_path):
    assert not resumed_differs("boundary_shrink", lambda: knowing_vit(dropout=0.1), tmp_path, 6)


def test_inputs_without_real_numbers_are_refused(tmp_path):
    """Token ids cannot move by a gradient."""
    trainer = trainer_of("boundary_shrink", knowing_vit(), tmp_path)
    with refused("the inputs of the model"):
        trainer.method.nearest(trainer.model, {"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2).long()})


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan")])
def test_an_epsilon_out_of_range_is_refused(epsilon):
    with refused("epsilon"):
        get_method("boundary_shrink", epsilon=epsilon)
