"""NPO and SimNPO: their losses, the gradient that stops by itself, and what they forget."""

import math

import pytest
import torch
from errors import refused
from tasks import knowing_vit, peft_vit
from unlearning_cases import before64, joint_batch, loss_on, move, rows64, trained_scores, trainer_of

from gs_lora_peft.methods import get_method


def log_probability(row, label):
    return row[label] - math.log(sum(math.exp(z) for z in row))


def expected(trainer, batch, per_sample, weight):
    """CE of the half to keep plus the weighted mean of `per_sample(log π, log π_ref)` over the half to forget."""
    labels = batch["labels"].tolist()
    now, before = rows64(trainer.model, batch["pixel_values"]), before64(batch["pixel_values"])
    kept = -sum(log_probability(now[i], labels[i]) for i in range(4)) / 4
    pairs = [(log_probability(now[i], labels[i]), log_probability(before[i], labels[i])) for i in range(4, 8)]
    return kept + weight * sum(per_sample(*pair) for pair in pairs) / 4


@pytest.mark.parametrize("build", [peft_vit, knowing_vit])
@pytest.mark.parametrize(("beta", "weight"), [(0.1, 1.0), (2.0, 0.3)])
def test_the_loss_of_npo(tmp_path, build, beta, weight):
    """(2/β)·log(1 + (π/π_ref)^β): the reference is the model before the task, whatever trains."""
    trainer = trainer_of("npo", build(), tmp_path, hyper={"beta": beta, "forget_weight": weight})
    move(trainer)
    batch = joint_batch()
    loss = expected(trainer, batch, lambda now, ref: 2 / beta * math.log1p(math.exp(beta * (now - ref))), weight)
    assert loss_on(trainer, batch).item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("official", [False, True])
def test_the_loss_of_simnpo(tmp_path, official):
    """No reference; the margin is subtracted after β, officially before."""
    hyper = {"beta": 2.5, "delta": 0.4, "forget_weight": 0.5, "official_compat": official}
    trainer, batch = trainer_of("simnpo", knowing_vit(), tmp_path, hyper=hyper), joint_batch()
    move(trainer)
    margin = 2.5 * 0.4 if official else 0.4
    loss = expected(trainer, batch, lambda now, _: 2 / 2.5 * math.log1p(math.exp(2.5 * now + margin)), 0.5)
    assert loss_on(trainer, batch).item() == pytest.approx(loss, rel=1e-4)


def test_before_any_step_npo_is_gradient_ascent(tmp_path):
    """π = π_ref: the factor 2·π^β/(π^β + π_ref^β) of its gradient is 1, and the loss is (2/β)·log 2."""
    gradients = {}
    for name, sign in (("npo", 1.0), ("gradient_ascent", 1.0), ("finetune", -1.0)):
        trainer = trainer_of(name, knowing_vit(), tmp_path)
        loss = loss_on(trainer, joint_batch())
        parts = torch.autograd.grad(loss, trainer.trained.parameters, allow_unused=True, materialize_grads=True)
        gradients[name] = sign * torch.cat([part.flatten() for part in parts])
    # NPO also trains on the half to keep.
    torch.testing.assert_close(
        gradients["npo"] + gradients["finetune"], gradients["gradient_ascent"], atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("name", "build", "settings", "hyper"),
    [
        ("npo", knowing_vit, {"learning_rate": 5e-3, "num_train_epochs": 4}, {}),
        ("npo", peft_vit, {"learning_rate": 5e-2, "num_train_epochs": 10}, {"beta": 0.5}),
        ("simnpo", knowing_vit, {"learning_rate": 5e-3, "num_train_epochs": 5}, {}),
        ("simnpo", peft_vit, {"learning_rate": 5e-2, "num_train_epochs": 8}, {"forget_weight": 0.5}),
    ],
)
def test_forgets_and_keeps(tmp_path, name, build, settings, hyper):
    forget, retain = trained_scores(name, build(), tmp_path, hyper=hyper, **settings)
    assert forget < 0.4
    assert retain > 0.8


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("npo", "beta", 0.0),
        ("npo", "forget_weight", -1.0),
        ("simnpo", "beta", -2.0),
        ("simnpo", "delta", math.inf),
    ],
)
def test_values_out_of_range_are_refused(name, field, value):
    with refused(field, value):
        get_method(name, **{field: value})
