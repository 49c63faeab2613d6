"""Prototypes and their terms, against slow references in float64."""

import math
from itertools import pairwise

import pytest
import torch
from errors import refused
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from gs_lora_peft.objectives import ClassificationObjective, ClassPrototypes, PrototypeObjective, embedding_distances

torch.set_num_threads(1)

WIDTH, CLASSES = 6, 4
KINDS = ["kl", "cosine", "l2"]


class Tiny(nn.Module):
    """An embedding and a head, with the configuration of a classifier."""

    def __init__(self, seed: int = 0, spread: float = 1.0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = PretrainedConfig(num_labels=CLASSES)
        self.body = nn.Linear(5, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.body.weight.mul_(spread)

    def forward(self, x):
        return {"logits": self.head(torch.tanh(self.body(x)) * 3)}

    def embed(self, x):
        return torch.tanh(self.body(x)) * 3


def batch(seed: int, size: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=generator)
    return {"x": x, "labels": torch.randint(CLASSES, (size,), generator=generator)}


def slow_distance(embedding, prototype, kind):
    """One pair of float64 vectors, written out."""
    if kind == "l2":
        return sum((e - p) ** 2 for e, p in zip(embedding, prototype, strict=True)) ** 0.5
    if kind == "cosine":
        dot = sum(e * p for e, p in zip(embedding, prototype, strict=True))
        return 1 - dot / (embedding.square().sum().sqrt() * prototype.square().sum().sqrt())
    p, q = (vector.exp() / vector.exp().sum() for vector in (prototype, embedding))
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def slow_prototypes(model, data):
    """Class by class and sample by sample in float64."""
    model = model.double()
    means = {}
    for c in set(data["labels"].tolist()):
        rows = [model.embed(x.double()) for x, y in zip(data["x"], data["labels"], strict=True) if y == c]
        means[c] = (sum(rows) / len(rows)).detach()
    return means


def prepared(model, data, objective):
    with torch.no_grad():
        objective.prepare(model, lambda: [data])
    return objective


def test_the_published_distance_is_torchs():
    """KL of log-softmaxes with `batchmean` and `log_target`, argument for argument as in the authors' code."""
    embeddings, prototypes = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    expected = F.kl_div(embeddings.log_softmax(1), prototypes.log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(embedding_distances(embeddings, prototypes).mean(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_at_its_prototype_is_at_distance_zero_with_a_finite_gradient(kind):
    """The first step of few-shot training starts there; the slope of a square root has no bound at 0."""
    prototypes = torch.randn(3, WIDTH)
    embeddings = prototypes.clone().requires_grad_()
    distances = embedding_distances(embeddings, prototypes, kind)
    distances.sum().backward()
    torch.testing.assert_close(distances.detach(), torch.zeros(3), rtol=0, atol=1e-6)
    assert torch.isfinite(embeddings.grad).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 40), cuts=st.lists(st.integers(1, 39), max_size=4))
def test_prototypes_are_class_means_however_the_data_is_cut(seed, size, cuts):
    """The mean of each class, the same bits in one batch and in many, zero for a class without samples."""
    model, data = Tiny(seed), batch(seed, size)
    whole = ClassPrototypes.compute(model, [data])
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    parts = [{name: v[a:b] for name, v in data.items()} for a, b in pairwise(edges)]
    cut = ClassPrototypes.compute(model, parts)
    assert whole.means.dtype == torch.float32
    torch.testing.assert_close(cut.means, whole.means, rtol=1e-6, atol=1e-7)
    assert whole.counts.tolist() == torch.bincount(data["labels"], minlength=CLASSES).tolist()
    expected = slow_prototypes(model, data)
    for c in range(CLASSES):
        reference = expected.get(c, torch.zeros(WIDTH, dtype=torch.float64))
        torch.testing.assert_close(whole.means[c].double(), reference, rtol=1e-5, atol=1e-6)


def test_processes_with_a_share_each_get_the_prototypes_of_all():
    """Sums and counts are added up over processes, not means averaged, which would weigh unequal shares alike."""
    model, data = Tiny(), batch(3, 30)
    shares = [{name: value[rank::2] for name, value in data.items()} for rank in (0, 1)]
    first = []
    ClassPrototypes.compute(model, [shares[0]], lambda tensor: first.append(tensor.clone()) or tensor)
    pending = iter(first)
    both = ClassPrototypes.compute(model, [shares[1]], lambda tensor: tensor + next(pending))
    torch.testing.assert_close(both.means, ClassPrototypes.compute(model, [data]).means)


def test_no_data_is_refused():
    """Prototypes of nothing would be zeros that embeddings are pulled to."""
    with refused("batches", []):
        ClassPrototypes.compute(Tiny(), [])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    half=st.integers(1, 7),
    kind=st.sampled_from(KINDS),
    forget_weight=st.sampled_from([0.0, 0.4, 2.0]),
    retain_weight=st.sampled_from([0.0, 0.7]),
    bound=st.one_of(st.just("auto"), st.floats(0.05, 4)),
)
def test_value_and_gradient_agree_with_float64(seed, half, kind, forget_weight, retain_weight, bound):
    """L + w_f · ReLU(BND_pro − D_f) + w_r · D_r over the joint batch, on both sides of the bound."""
    data, joint = batch(seed + 1, 30), batch(seed, 2 * half)
    inner = ClassificationObjective(0.5, 2.0)
    objective = PrototypeObjective(inner, forget_weight, retain_weight, bound, kind)
    means = slow_prototypes(Tiny(seed), data)
    prepared(Tiny(seed), data, objective)
    trained, reference = Tiny(seed + 7, 2.0), Tiny(seed + 7, 2.0).double()

    output = objective.training_step(trained, joint)
    output.loss.backward()

    x, labels = joint["x"].double(), joint["labels"]
    embeddings = [reference.embed(row) for row in x]
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    if zero_classes := [c for c in labels.tolist() if c not in means]:
        assert not zero_classes  # 30 samples of 4 classes: never
    pairs = zip(embeddings, labels.tolist(), strict=True)
    distances = [slow_distance(e, means.get(c, zero), kind) for e, c in pairs]
    retain, forget = sum(distances[:half]) / half, sum(distances[half:]) / half
    if bound == "auto":
        known = sorted(means)
        among = [slow_distance(means[b], means[a], kind) for a in known for b in known if a != b]
        bound = (sum(among) / len(among)).item()
    if abs(forget.item() - bound) < 1e-4:  # at the kink float32 may fall on the other side
        return
    base = inner(torch.stack([reference.head(e) for e in embeddings]).float(), labels).loss
    loss = base.double() + forget_weight * torch.relu(bound - forget) + retain_weight * retain
    loss.backward()

    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    assert output.metrics["retain_distance"].item() == pytest.approx(retain.item(), rel=1e-4, abs=1e-5)
    assert output.metrics["forget_distance"].item() == pytest.approx(forget.item(), rel=1e-4, abs=1e-5)
    for p, q in zip(trained.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=2e-3, atol=2e-4)


def test_the_bound_is_judged_by_the_mean_over_processes():
    """A process beyond the bound still pushes while the joint batch is within it."""
    model, data = Tiny(), batch(0, 20)
    joint = batch(1, 6)

    def loss_with(mean):
        objective = prepared(model, data, PrototypeObjective(ClassificationObjective(0.0, 1.0), 1.0, 0.0, 5.0, "l2"))
        step = objective.training_step(model, joint, lambda t: torch.full_like(t, mean) if t.shape == (2,) else t)
        return step.loss.item()

    plain = ClassificationObjective(0.0, 1.0).training_step(model, joint).loss.item()
    assert loss_with(5.1) == pytest.approx(plain)
    assert loss_with(4.9) > plain + 0.1


def test_metrics_carry_no_gradient_and_evaluation_is_that_of_the_classifier():
    """Logs must not keep the graph alive; what is evaluated does not depend on prototypes."""
    model, data = Tiny(), batch(0, 20)
    inner = ClassificationObjective(0.5, 1.0)
    objective = prepared(model, data, PrototypeObjective(inner, 1.0, 1.0))
    output = objective.training_step(model, batch(1, 6))
    assert set(output.metrics) == {"retain_accuracy", "forget_accuracy", "retain_distance", "forget_distance"}
    assert not any(value.requires_grad for value in output.metrics.values())
    with torch.no_grad():
        loss, outputs = objective.evaluation_step(model, data)
        expected, _ = inner.evaluation_step(model, data)
    assert loss == expected
    assert outputs["logits"].shape == (20, CLASSES)


def test_the_mean_distance_of_one_class_is_no_nan():
    """A NaN bound would silently switch forgetting off."""
    data = {"x": torch.randn(3, 5), "labels": torch.zeros(3, dtype=torch.int64)}
    prototypes = ClassPrototypes.compute(Tiny(), [data])
    assert prototypes.mean_distance().item() == 0.0
    assert math.isfinite(ClassPrototypes.compute(Tiny(), [batch(0, 9)]).mean_distance("cosine").item())
