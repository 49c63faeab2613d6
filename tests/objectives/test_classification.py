"""The loss of a joint batch: its value, its gradient, and when the bound closes."""

import math

import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from torch import nn

from gs_lora_peft.objectives import ClassificationObjective, auto_forget_bound, bounded_cross_entropy


def batch(seed: int, half: int, classes: int, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * half, 5, generator=generator)
    labels = torch.randint(classes, (2 * half,), generator=generator)
    weight = spread * torch.randn(classes, 5, generator=generator)
    return inputs, labels, weight


def slow_reference(inputs, labels, weight, forget_weight: float, bound: float, kind: str):
    """The formula in float64: two forwards, log-probabilities written out, sample by sample."""
    weight = weight.double().requires_grad_()
    half = len(labels) // 2

    def cross_entropies(part, targets):
        logits = part.double() @ weight.T
        return [torch.logsumexp(row, 0) - row[target] for row, target in zip(logits, targets, strict=True)]

    retain = sum(cross_entropies(inputs[:half], labels[:half])) / half
    samples = cross_entropies(inputs[half:], labels[half:])
    forget = sum(samples) / half
    # log((1 - p) / p) from the probabilities of the other classes: the CE of a sure sample, about 1e-13, has too few
    # digits even in float64.
    log_odds = [
        torch.stack([logit for c, logit in enumerate(row) if c != target]).logsumexp(0) - row[target]
        for row, target in zip(inputs[half:].double() @ weight.T, labels[half:], strict=True)
    ]
    bounded = log_odds if kind == "log_odds" else [forget]
    loss = retain + forget_weight * sum(torch.relu(bound - value) for value in bounded) / len(bounded)
    loss.backward()
    distance = min(abs(value.item() - bound) for value in bounded)
    return loss.item(), retain.item(), forget.item(), weight.grad, distance


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    half=st.integers(1, 9),
    classes=st.integers(2, 7),
    forget_weight=st.floats(0, 3),
    bound=st.floats(0.1, 6),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    kind=st.sampled_from(["log_odds", "cross_entropy"]),
)
def test_value_and_gradient_agree_with_two_forwards_in_float64(
    seed, half, classes, forget_weight, bound, spread, kind
):
    """One joint forward is the loss that is promised, value and gradient, on both sides of the bound."""
    inputs, labels, weight = batch(seed, half, classes, spread)
    loss, retain, forget, gradient, distance = slow_reference(inputs, labels, weight, forget_weight, bound, kind)
    if distance < 1e-4:  # at the kink float32 may fall on the other side
        return
    fast = weight.clone().requires_grad_()
    output = ClassificationObjective(forget_weight, bound, kind)(inputs @ fast.T, labels)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, rel=2e-5, abs=2e-5)
    assert output.retain_loss.item() == pytest.approx(retain, rel=2e-5, abs=2e-5)
    assert output.forget_loss.item() == pytest.approx(forget, rel=2e-5, abs=2e-5)
    torch.testing.assert_close(fast.grad.double(), gradient, rtol=1e-4, atol=1e-5)


def test_what_is_reported_carries_no_gradient_and_is_unbounded():
    """Logs must not keep the graph alive, and the forget loss is logged as it is, not as the hinge sees it."""
    inputs, labels, weight = batch(0, 4, 3, spread=10.0)
    output = ClassificationObjective(1.0, 0.01)(inputs @ weight.requires_grad_().T, labels)
    reported = [output.retain_loss, output.forget_loss, *output.metrics.values()]
    assert not any(tensor.requires_grad for tensor in reported)
    assert output.forget_loss > 0.01
    hits = ((inputs @ weight.T).argmax(-1) == labels).float()
    assert output.metrics["retain_accuracy"] == hits[:4].mean()
    assert output.metrics["forget_accuracy"] == hits[4:].mean()


def test_closed_hinge_leaves_no_gradient_on_the_forget_half():
    """Once forgotten enough, forgetting must not push on."""
    logits = torch.zeros(8, 4)
    logits[4:, 0] = -50.0
    logits.requires_grad_()
    labels = torch.tensor([1, 2, 3, 1, 0, 0, 0, 0])
    ClassificationObjective(1.0, 2.0)(logits, labels).loss.backward()
    assert torch.equal(logits.grad[4:], torch.zeros(4, 4))
    assert logits.grad[:4].abs().sum() > 0


def test_a_class_that_is_forgotten_does_not_hide_one_that_is_not():
    """By log-odds, a class the head is sure of is pushed in full, a forgotten one not at all; by the mean, neither."""
    labels = torch.tensor([1, 1, 0, 2])
    gradients = {}
    for kind in ("log_odds", "cross_entropy"):
        logits = torch.zeros(4, 3)
        logits[2, 0], logits[3, 2] = -30.0, 30.0
        logits.requires_grad_()
        ClassificationObjective(1.0, 4.0, kind)(logits, labels).loss.backward()
        gradients[kind] = logits.grad[2:]
    assert torch.equal(gradients["cross_entropy"], torch.zeros(2, 3))
    assert torch.equal(gradients["log_odds"][0], torch.zeros(3))
    assert gradients["log_odds"][1, 2] == 0.5  # slope 1, mean of two samples


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize(("kind", "factor"), [("log_odds", 1.5), ("cross_entropy", 5.0)])
def test_auto_bound_follows_the_heads_size(classes, kind, factor):
    """The default bound is a multiple of ln C, the loss of a head that knows nothing."""
    assert auto_forget_bound(classes, kind) == pytest.approx(factor * math.log(classes))
    logits, labels = torch.zeros(2, classes), torch.tensor([0, 1])
    output = ClassificationObjective(1.0, "auto", kind)(logits, labels)
    known = math.log(classes - 1) if kind == "log_odds" else math.log(classes)
    assert output.loss.item() == pytest.approx(math.log(classes) + factor * math.log(classes) - known, rel=1e-5)


@pytest.mark.parametrize("kind", ["log_odds", "cross_entropy"])
def test_classes_without_data_are_left_alone(kind):
    """No sample pushes their logits down; what is left is the loss of a head without them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 2, 4, 3, 3, 3])
    output = ClassificationObjective(0.5, 9.0, kind, missing_classes=[1])(logits, labels)
    output.loss.backward()
    assert torch.equal(logits.grad[:, 1], torch.zeros(6))
    smaller = logits.detach()[:, [0, 2, 3, 4]].requires_grad_()
    expected = ClassificationObjective(0.5, 9.0, kind)(smaller, torch.tensor([0, 1, 3, 2, 2, 2]))
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(logits.grad[:, [0, 2, 3, 4]], smaller.grad)


def test_accuracies_are_those_of_the_whole_head():
    """A sample taken for a class without data is not classified right; only the losses leave that class out."""
    logits, labels = torch.tensor([[1.0, 9.0, 0.0], [0.0, 9.0, 1.0]]), torch.tensor([0, 2])
    metrics = ClassificationObjective(0.5, 9.0, missing_classes=[1])(logits, labels).metrics
    assert (metrics["retain_accuracy"], metrics["forget_accuracy"]) == (0.0, 0.0)


def test_auto_bound_refuses_a_head_of_one_class():
    """A multiple of ln 1 = 0 would switch forgetting off without a word."""
    with refused("num_classes", 1):
        auto_forget_bound(1)


def test_hinge_opens_by_the_mean_over_all_processes():
    """With processes at 1 and 5 and a bound of 3.5 the joint batch is open, also where the local mean is beyond."""
    for local, mean, expected in [(5.0, 3.0, 3.5 - 5.0), (1.0, 3.0, 3.5 - 1.0), (1.0, 4.0, 0.0), (5.0, 4.0, 0.0)]:
        value = bounded_cross_entropy(torch.full((2,), local), 3.5, lambda own, mean=mean: own * 0 + mean)
        assert value.item() == expected
    assert bounded_cross_entropy(torch.tensor([1.0, torch.nan]), 3.5).isnan(), "a broken loss must not look closed"


def test_bf16_logits_are_compared_in_float32():
    """8 bits of mantissa are too few for a loss near its bound: 2.302 and 2.31 would be the same number."""
    logits = torch.zeros(2, 10, dtype=torch.bfloat16)
    output = ClassificationObjective(1.0, 2.31, "cross_entropy")(logits, torch.tensor([0, 1]))
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(2.31, abs=1e-5)


def test_a_batch_without_two_equal_halves_is_refused():
    """A collator that drops a sample would shift the border between what stays and what goes."""
    with refused("the size of a joint batch", 5):
        ClassificationObjective(1.0, "auto")(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))


def test_documented_example_runs():
    """The few lines of the docstring are what a new kind of model starts from."""
    objective = ClassificationObjective(forget_weight=0.5, forget_bound="auto")
    model = nn.Linear(4, 3)
    objective(model(torch.randn(6, 4)), torch.tensor([0, 1, 0, 2, 2, 2])).loss.backward()
    assert model.weight.grad is not None
