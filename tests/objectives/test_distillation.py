"""Distillation, against a slow reference in float64, and what it holds."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from gs_lora_peft.compat import reference_model
from gs_lora_peft.objectives import DistillationObjective, Objective, ObjectiveOutput, distillation_loss

torch.set_num_threads(1)


def slow_loss(logits, earlier, excluded_classes):
    """Sample after sample, class after class."""
    total = 0.0
    for now, before in zip(logits.double().tolist(), earlier.double().tolist(), strict=True):
        classes = [c for c in range(len(now)) if c not in excluded_classes]
        p, q = ([math.exp(x[c]) / sum(math.exp(x[i]) for i in classes) for c in classes] for x in (before, now))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(logits)


@given(
    rows=st.integers(1, 5),
    classes=st.integers(2, 7),
    left=st.sets(st.integers(0, 6)),
    seed=st.integers(0, 2**20),
    scale=st.floats(0.1, 8),
)
@settings(deadline=None)
def test_loss_equals_the_slow_reference(rows, classes, left, seed, scale):
    """KL(p_before ‖ p_now), each conditioned on the classes that stay, mean over samples."""
    left = {c for c in left if c < classes - 1}
    generator = torch.Generator().manual_seed(seed)
    logits, earlier = (scale * torch.randn(rows, classes, generator=generator) for _ in range(2))
    found = distillation_loss(logits, earlier, sorted(left)).item()
    assert found == pytest.approx(slow_loss(logits, earlier, left), rel=1e-4, abs=1e-5)
    assert found >= -1e-6


def test_left_out_classes_are_free():
    """Whatever is said of classes to forget, the term does not pull on it."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distillation_loss(logits, torch.zeros(3, 5), [1, 4]).backward()
    assert not logits.grad[:, [1, 4]].any()
    assert logits.grad[:, [0, 2, 3]].abs().min() > 0


def test_a_class_that_the_model_rules_out_adds_nothing():
    """A head may mask classes by logits of -inf; 0 · (-inf + inf) would be NaN."""
    logits, earlier = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    for part in (logits, earlier):
        part[:, 2] = -math.inf
    logits.requires_grad_()
    found = distillation_loss(logits, earlier)
    assert found.item() == pytest.approx(slow_loss(logits.detach(), earlier, {2}), rel=1e-5)
    found.backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, 2].any()


def test_half_precision_is_computed_in_single():
    """As with the other losses: bf16 has too few bits for a difference of logarithms."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = distillation_loss(logits, logits.flip(0))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_loss(logits.float(), logits.flip(0).float(), ()), rel=1e-5)


class Silent(Objective):
    """A user's objective that does not return logits."""

    def training_step(self, model, inputs, global_mean=None):
        zero = torch.zeros((), requires_grad=True)
        return ObjectiveOutput(zero, zero.detach(), zero.detach())


class Identity(nn.Module):
    def forward(self, x):
        return {"logits": x}


def test_an_objective_without_logits_is_refused():
    """By its name, instead of a failure somewhere inside."""
    objective = DistillationObjective(Silent(), 1.0)
    with pytest.raises(TypeError, match="Silent"):
        objective.training_step(Identity(), {"x": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.long)})


def test_every_module_is_in_its_own_mode_again():
    """Also one that its owner put in eval mode while the rest trains; and after an error."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    try:
        with reference_model(model, "default"):
            within = {module.training for module in model.modules()} | {torch.is_grad_enabled()}
            raise KeyError
    except KeyError:
        pass
    assert within == {False}
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
