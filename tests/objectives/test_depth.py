"""Forgetting in depth, against a slow reference in float64: which states are drawn where, and what stays out of it."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from gs_lora_peft.objectives import (
    ClassificationObjective,
    DepthObjective,
    Objective,
    ObjectiveOutput,
    depth_distances,
    target_weights,
)

torch.set_num_threads(1)

WIDTH, CLASSES, TOKENS = 5, 4, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, states):
        return states + torch.tanh(self.mix(states))


class Tiny(nn.Module):
    """Two blocks over three tokens; the head reads the first token."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x[:, 0])}


def batch(seed, labels):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(len(labels), TOKENS, WIDTH, generator=generator), "labels": torch.tensor(labels)}


def depth_of(target="mean", weight=1.0, inner=None):
    inner = inner or ClassificationObjective(0.1, "auto")
    return DepthObjective(inner, weight, target=target, blocks=["layers.0", "layers.1"])


def normed(vector):
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in vector]


def slow_readings(model, row, mask):
    """Of one sample: the first token and the mean over the tokens that are no padding, behind each block."""
    found, states = [], row
    for layer in model.layers:
        states = layer(states)
        used = [token for token, kept in zip(states, mask, strict=True) if kept]
        found += [states[0].tolist(), (sum(used) / len(used)).tolist()]
    return found, model.head(states[0]).tolist()


def slow_depth(model, before, inputs):
    """Sample after sample: the mean of the kept samples of the class that fits best."""
    labels, half = inputs["labels"].tolist(), len(inputs["labels"]) // 2
    mask = inputs.get("attention_mask", torch.ones(len(labels), TOKENS)).tolist()
    now = [slow_readings(model, x, m) for x, m in zip(inputs["x"], mask, strict=True)]
    kept = [slow_readings(before, x, m)[0] for x, m in zip(inputs["x"][:half], mask, strict=False)]
    total, count = 0.0, 0
    for states, logits in now[half:]:
        best = max(set(labels[:half]), key=lambda label: logits[label])
        of_class = [targets for targets, label in zip(kept, labels[:half], strict=True) if label == best]
        for reading, vector in enumerate(states):
            goal = [sum(x) / len(of_class) for x in zip(*(normed(t[reading]) for t in of_class), strict=True)]
            total += sum((a - b) ** 2 for a, b in zip(normed(vector), goal, strict=True)) / WIDTH
            count += 1
    return total / count


@given(
    kept=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    seed=st.integers(0, 2**20),
    masked=st.booleans(),
)
@settings(max_examples=30)
def test_term_equals_the_slow_reference(kept, seed, masked):
    """Without an adapter the model before the task is the model itself."""
    model, inputs = Tiny(seed % 7).double(), batch(seed, [*kept, *[3] * len(kept)])
    inputs["x"] = inputs["x"].double()
    if masked:
        generator = torch.Generator().manual_seed(seed)
        inputs["attention_mask"] = (torch.rand(len(inputs["x"]), TOKENS, generator=generator) < 0.7).long()
        inputs["attention_mask"][:, 0] = 1
    plain = ClassificationObjective(0.1, "auto").training_step(model, inputs)
    found = depth_of(weight=0.7).training_step(model, inputs)
    expected = slow_depth(model, model, inputs)
    assert found.metrics["depth"].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found.loss.item() == pytest.approx(plain.loss.item() + 0.7 * expected, rel=1e-4)
    assert found.retain_loss.equal(plain.retain_loss)


@pytest.mark.parametrize("target", ["sample", "mean"])
def test_targets_are_of_the_class_that_fits_best_among_those_in_the_batch(target):
    """Class 2 fits best and is not in the batch; class 1 is the next."""
    logits = torch.tensor([[0.0, 3.0, 9.0, 20.0], [5.0, 3.0, 9.0, 20.0]])
    kept = torch.tensor([1, 0, 1, 0, 1])
    weights = target_weights(logits, kept, target)
    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert not weights[0, kept != 1].any()
    assert not weights[1, kept != 0].any()
    if target == "mean":
        assert weights[1].tolist() == [0, 0.5, 0, 0.5, 0]
    else:
        assert set(weights.flatten().tolist()) == {0.0, 1.0}


def test_every_sample_of_the_class_is_drawn():
    """By torch's global generator, evenly."""
    torch.manual_seed(0)
    kept = torch.tensor([0, 1, 0, 0])
    drawn = target_weights(torch.tensor([[1.0, 0.0]]).expand(3000, 2), kept, "sample").mean(0)
    assert drawn.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.04)
    again = [target_weights(torch.tensor([[1.0, 0.0]]), kept, "sample") for _ in range(2) if torch.manual_seed(3)]
    assert again[0].equal(again[1])


@pytest.mark.parametrize("target", ["sample", "mean"])
def test_order_of_the_samples_does_not_matter(target):
    """Within each half. With one kept sample a class nothing is drawn."""
    model, inputs = Tiny(), batch(3, [0, 1, 2, 3, 3, 3])
    order = torch.tensor([2, 0, 1, 4, 5, 3])
    moved = {name: value[order] for name, value in inputs.items()}
    one, two = (depth_of(target).training_step(model, x).metrics["depth"] for x in (inputs, moved))
    torch.testing.assert_close(one, two)


def test_one_kept_class_and_one_sample():
    """It is the target of all, whatever the logits say."""
    weights = target_weights(torch.randn(3, CLASSES), torch.tensor([2]), "sample")
    assert weights.equal(torch.ones(3, 1))


def test_gradients_reach_the_states_to_forget_alone():
    """Targets are constants: kept states are not drawn to forgotten ones."""
    states, kept = torch.randn(2, 3, WIDTH).requires_grad_().unbind(), torch.randn(2, 4, WIDTH)
    logits = torch.randn(3, CLASSES)
    depth_distances(states, kept.unbind(), target_weights(logits, torch.tensor([0, 1, 1, 2]))).mean().backward()
    model, inputs = Tiny(), batch(1, [0, 1, 3, 3])
    inputs["x"].requires_grad_()
    output = depth_of(inner=Silenced()).training_step(model, inputs)
    output.loss.backward()
    assert not inputs["x"].grad[:2].any()
    assert inputs["x"].grad[2:].any()


def test_states_that_fit_cost_nothing_and_foreign_ones_about_two():
    kept = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert depth_distances([3 * kept + 1], [kept], torch.eye(4)).item() == pytest.approx(0, abs=1e-5)
    other = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    assert depth_distances([other], [kept], torch.eye(4)).item() == pytest.approx(2, abs=0.5)


def test_half_precision_is_computed_in_single():
    model, inputs = Tiny().bfloat16(), batch(2, [0, 1, 3, 3])
    inputs["x"] = inputs["x"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = depth_of().training_step(model, inputs).metrics["depth"]
    exact = depth_of().training_step(model.float(), {**inputs, "x": inputs["x"].float()}).metrics["depth"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)


class Silenced(ClassificationObjective):
    """No loss of its own, so that what is left is the term."""

    def __init__(self):
        super().__init__(0.0, "auto")

    def __call__(self, logits, labels, global_mean=None):
        zero = logits.new_zeros(())
        return ObjectiveOutput(zero, zero, zero)


class Silent(Objective):
    """A user's objective that does not return logits."""

    def training_step(self, model, inputs, global_mean=None):
        zero = model(inputs["x"])["logits"].square().mean()
        return ObjectiveOutput(zero, zero.detach(), zero.detach())


def test_an_objective_without_logits_is_refused():
    with pytest.raises(TypeError, match="Silent"):
        depth_of(inner=Silent()).training_step(Tiny(), batch(0, [0, 3]))
