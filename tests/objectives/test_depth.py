"""Forgetting in depth, against a slow reference in float64: which states are drawn where, and what stays out of it."""

import copy
import math

import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from torch import nn

from gs_lora_peft.objectives import (
    ClassificationObjective,
    DepthObjective,
    Objective,
    ObjectiveOutput,
    state_scales,
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


BLOCKS = ["layers.0", "layers.1"]


def depth_of(model, *data, target="mean", weight=1.0, retain_weight=0.0, inner=None):
    """The objective, whose scales are those of the data."""
    inner = inner or ClassificationObjective(0.1, "auto")
    objective = DepthObjective(inner, weight, retain_weight, target=target, blocks=BLOCKS, forget_classes=[3])
    objective.prepare(model, lambda: data)
    return objective


def slow_readings(model, row, mask):
    """Of one sample: the first token and the mean over the tokens that are no padding, behind each block."""
    found, states = [], row
    for layer in model.layers:
        states = layer(states)
        used = [token for token, kept in zip(states, mask, strict=True) if kept]
        found += [states[0].tolist(), (sum(used) / len(used)).tolist()]
    return found, model.head(states[0]).tolist()


def slow_deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))


def slow_scales(kept):
    """Of each reading and dimension, over the kept samples; at least a tenth of the mean over dimensions.

    Where nothing varies, the root mean square of the reading.
    """
    scales = []
    for rows in zip(*kept, strict=True):
        deviations = [slow_deviation(column) for column in zip(*rows, strict=True)]
        mean = sum(deviations) / len(deviations)
        size = math.sqrt(sum(x * x for row in rows for x in row) / sum(map(len, rows)))
        scales.append([max(d, mean / 10) for d in deviations] if mean > 1e-4 * size else [size] * len(deviations))
    return scales


def slow_depth(model, inputs):
    """Sample after sample: how far from the mean of the kept samples of the class that fits best."""
    labels, half = inputs["labels"].tolist(), len(inputs["labels"]) // 2
    mask = inputs.get("attention_mask", torch.ones(len(labels), TOKENS)).tolist()
    now = [slow_readings(model, x, m) for x, m in zip(inputs["x"], mask, strict=True)]
    kept = [states for states, _ in now[:half]]
    scales, total, weight = slow_scales(kept), 0.0, 0.0
    for states, logits in now[half:]:
        best = max(set(labels[:half]), key=lambda label: logits[label])
        of_class = [targets for targets, label in zip(kept, labels[:half], strict=True) if label == best]
        for reading, vector in enumerate(states):
            goal = [sum(x) / len(of_class) for x in zip(*(t[reading] for t in of_class), strict=True)]
            pairs = zip(vector, goal, scales[reading], strict=True)
            share = (1, 3)[reading % 2] / (1 + reading // 2)  # the mean over tokens counts three times
            total += sum(((a - b) / s) ** 2 for a, b, s in pairs) / WIDTH * share
            weight += share
    return total / weight


@given(kept=st.lists(st.integers(0, 2), min_size=1, max_size=6), seed=st.integers(0, 2**20), masked=st.booleans())
@settings(max_examples=30)
def test_term_equals_the_slow_reference(kept, seed, masked):
    """Without an adapter the model before the task is the model itself, and kept states are where they were."""
    model, inputs = Tiny(seed % 7), batch(seed, [*kept, *[3] * len(kept)])
    if masked:
        generator = torch.Generator().manual_seed(seed)
        inputs["attention_mask"] = (torch.rand(len(inputs["x"]), TOKENS, generator=generator) < 0.7).long()
        inputs["attention_mask"][:, 0] = 1
    plain = ClassificationObjective(0.1, "auto").training_step(model, inputs)
    found = depth_of(model, inputs, weight=0.7, retain_weight=9.0).training_step(model, inputs)
    slow = {name: value.double() if name == "x" else value for name, value in inputs.items()}
    expected = slow_depth(copy.deepcopy(model).double(), slow)
    assert found.metrics["depth"].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.loss.item() == pytest.approx(plain.loss.item() + 0.7 * expected, rel=1e-3)
    assert found.metrics["depth_retain"].item() == 0
    assert found.retain_loss.equal(plain.retain_loss)


def test_scales_do_not_depend_on_batches():
    """Nor on the samples to forget; two processes add up their sums."""
    model, whole = Tiny(), batch(5, [0, 1, 2, 3, 3, 1, 0, 3])
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    once, apart = state_scales(model, BLOCKS, [whole], [3]), state_scales(model, BLOCKS, parts, [3])
    kept = {name: value[whole["labels"] != 3] for name, value in whole.items()}
    doubled = state_scales(model, BLOCKS, [kept], [3], global_sum=lambda x: 2 * x)
    for one, two, three in zip(once, apart, doubled, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)
    with refused("batches", []):
        state_scales(model, BLOCKS, [], [3])


def test_scales_are_positive_whatever_varies():
    model, same = Tiny(), batch(0, [0, 0])
    same["x"][:] = same["x"][:1]
    for scale in state_scales(model, BLOCKS, [same]):
        assert scale.min() > 0.01  # the size of the states, not the rounding of their deviation
        assert scale.equal(scale[:1].expand(WIDTH))


@pytest.mark.parametrize("count", [2, 1000])
def test_states_that_do_not_vary_are_measured_in_their_size(count):
    """As those of a token that starts every sample behind causal attention: what is left of them is rounding."""
    model, same = Tiny(), batch(0, [0] * count)
    same["x"][:] = same["x"][:1]
    states = same["x"][:1]
    for block, scale in enumerate(zip(*[iter(state_scales(model, BLOCKS, [same]))] * 2, strict=True)):
        states = model.layers[block](states)
        for found, read in zip(scale, (states[:, 0], states.mean(1)), strict=True):
            torch.testing.assert_close(found[0], read.square().mean().sqrt(), rtol=1e-3, atol=1e-6)


def test_zero_states_have_scale_one():
    model, zero = Tiny(), batch(0, [0, 0])
    zero["x"][:] = 0
    for layer in model.layers:
        nn.init.zeros_(layer.mix.bias)
    assert all(scale.equal(torch.ones(WIDTH)) for scale in state_scales(model, BLOCKS, [zero]))


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
    objective = depth_of(model, inputs, target=target)
    one, two = (objective.training_step(model, x).metrics["depth"] for x in (inputs, moved))
    torch.testing.assert_close(one, two)


def test_one_kept_class_and_one_sample():
    """It is the target of all, whatever the logits say."""
    weights = target_weights(torch.randn(3, CLASSES), torch.tensor([2]), "sample")
    assert weights.equal(torch.ones(3, 1))


def test_gradients_reach_the_states_to_forget_alone():
    """Targets are constants: kept states are not drawn to forgotten ones."""
    model, inputs = Tiny(), batch(1, [0, 1, 3, 3])
    objective = depth_of(model, inputs, inner=Silenced())
    inputs["x"].requires_grad_()
    objective.training_step(model, inputs).loss.backward()
    assert not inputs["x"].grad[:2].any()
    assert inputs["x"].grad[2:].abs().min() > 0


def test_half_precision_is_computed_in_single():
    model, inputs = Tiny().bfloat16(), batch(2, [0, 1, 2, 0, 1, 2, 3, 3, 3, 3, 3, 3])
    inputs["x"] = inputs["x"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = depth_of(model, inputs).training_step(model, inputs).metrics["depth"]
    model, inputs = model.float(), {**inputs, "x": inputs["x"].float()}
    exact = depth_of(model, inputs).training_step(model, inputs).metrics["depth"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.1)


def test_scales_come_first():
    with pytest.raises(RuntimeError, match="prepare"):
        DepthObjective(Silent(), 1.0, blocks=BLOCKS).training_step(Tiny(), batch(0, [0, 3]))


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
        depth_of(model := Tiny(), batch(0, [0, 3]), inner=Silent()).training_step(model, batch(0, [0, 3]))
