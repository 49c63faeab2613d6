"""Terms added to an objective: prototypes and distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import reference_model, unwrapped
from ..errors import InvalidInputError
from .base import GlobalMean, Objective, ObjectiveOutput, identity
from .classification import bounded_cross_entropy, logits_of
from .heads import captured_embeddings, find_head

PrototypeDistance = Literal["kl", "cosine", "l2"]


def embedding_distances(embeddings: Tensor, prototypes: Tensor, kind: PrototypeDistance = "kl") -> Tensor:
    """
    How far each embedding lies from a prototype.

    Args:
        embeddings (`torch.Tensor`):
            Shape `(B, width)`.
        prototypes (`torch.Tensor`):
            The same shape.
        kind (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            `"kl"` is KL(softmax(prototype) ‖ softmax(embedding)) in nats, as published (its mean is `F.kl_div` of
            log-softmaxes with `batchmean` and `log_target`); `"cosine"` 1 − cos, in [0, 2]; `"l2"` the Euclidean
            distance.

    Returns:
        `torch.Tensor`: Shape `(B,)`, not negative.
    """
    if kind == "cosine":
        return 1 - F.cosine_similarity(embeddings, prototypes)
    if kind == "l2":
        return torch.linalg.vector_norm(embeddings - prototypes, dim=1)
    log_p, log_q = prototypes.log_softmax(1), embeddings.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True)
class ClassPrototypes:
    """
    The mean embedding of every class, on the device of the model.

    Attributes:
        means (`torch.Tensor`):
            float32, shape `(num_labels, width)`; zero where a class had no sample.
        counts (`torch.Tensor`):
            int64, shape `(num_labels,)`: samples of each class (views, where they are augmented).
    """

    means: Tensor
    counts: Tensor

    @classmethod
    @torch.no_grad()
    def compute(
        cls, model: nn.Module, batches: Iterable[dict[str, Any]], global_sum: GlobalMean = identity
    ) -> ClassPrototypes:
        """
        One pass over labelled data.

        Args:
            model (`torch.nn.Module`):
                A classifier, as it was before the task and in eval mode.
            batches (`Iterable[dict]`):
                Batches with `labels`, on the model's device; this process's share of them.
            global_sum (`Callable`, *optional*):
                Sums a tensor over processes; identity by default.

        Returns:
            [`ClassPrototypes`], the same in every process.

        Raises:
            NoEmbeddingFoundError: If the embedding cannot be found.
            InvalidInputError: If a process has no data.
        """
        own = unwrapped(model)
        path, num_labels = find_head(own), own.config.num_labels
        sums = counts = None
        for batch in batches:
            labels = batch["labels"]
            with captured_embeddings(model, path) as captured:
                model(**{name: value for name, value in batch.items() if name != "labels"})
            embeddings = captured.embeddings
            if sums is None or counts is None:
                # In float64 the order of the sum leaves no trace in a float32 mean: neither the atomic additions of a
                # GPU, nor the size of batches, nor the number of processes.
                dtype = torch.float32 if embeddings.device.type == "mps" else torch.float64
                sums = torch.zeros(num_labels, embeddings.shape[1], dtype=dtype, device=embeddings.device)
                counts = torch.zeros(num_labels, dtype=dtype, device=embeddings.device)
            sums.index_add_(0, labels, embeddings.to(sums.dtype))
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        if sums is None or counts is None:
            expected = "one sample at least in each process, to take prototypes of"
            raise InvalidInputError("batches", [], expected, "Use fewer processes than there are samples.")
        sums, counts = global_sum(sums), global_sum(counts)
        return cls((sums / counts.clamp(min=1)[:, None]).float(), counts.long())

    def of(self, labels: Tensor) -> Tensor:
        """The prototypes of samples' classes: shape `(B, width)` for labels of shape `(B,)`."""
        return self.means[labels]

    def mean_distance(self, kind: PrototypeDistance = "kl") -> Tensor:
        """The mean distance between the prototypes of two different classes, a scalar; 0 where there is one class."""
        means = self.means[self.counts > 0]
        # A class has no distance from itself.
        sums = [embedding_distances(row.expand_as(means), means, kind).sum() for row in means]
        return torch.stack(sums).sum() / max(len(means) * (len(means) - 1), 1)


class PrototypeObjective(Objective):
    r"""
    Adds the prototype terms of GS-LoRA++ (https://arxiv.org/abs/2501.09705, §3.4) to the objective of a classifier:
    w_f · ReLU(BND_pro − D_f) + w_r · D_r, where D_f and D_r are the mean distances of the embeddings of the forget and
    the retain half from the prototypes of their classes.

    Prototypes come from the model as it was before the task, on the samples of both training sets, and are taken anew
    when a training is resumed; nothing of them is stored.

    Args:
        objective ([`Objective`]):
            What the terms are added to; its forward must go through the model's one head.
        forget_weight (`float`):
            w_f.
        retain_weight (`float`):
            w_r.
        bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND_pro, in the unit of the distance. `"auto"` is the mean distance between the prototypes of two different
            classes, so that a forgotten sample ends as far from its class as other classes lie. (The papers' 18
            belongs to CosFace embeddings of width 512.).
        distance (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            See [`embedding_distances`].

    Attributes:
        prototypes ([`ClassPrototypes`] or `None`):
            `None` before [`~PrototypeObjective.prepare`].
    """

    def __init__(
        self,
        objective: Objective,
        forget_weight: float,
        retain_weight: float,
        bound: float | str = "auto",
        distance: PrototypeDistance = "kl",
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.forget_weight = forget_weight
        self.retain_weight = retain_weight
        self.bound = bound
        self.distance: PrototypeDistance = distance
        self.prototypes: ClassPrototypes | None = None
        self._path: str | None = None
        self._bound = 0.0

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)
        self._path = find_head(unwrapped(model))
        self.prototypes = prototypes = ClassPrototypes.compute(model, batches(), global_sum)
        self._bound = prototypes.mean_distance(self.distance).item() if self.bound == "auto" else float(self.bound)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        if self.prototypes is None:
            raise RuntimeError("there are no prototypes yet: call prepare() before the first step")
        with captured_embeddings(model, self._path) as captured:
            output = self.objective.training_step(model, inputs, global_mean)
        labels = inputs["labels"]
        # Under autocast, softmax and norms must not fall back to half precision.
        with torch.autocast(labels.device.type, enabled=False):
            distances = embedding_distances(captured.embeddings, self.prototypes.of(labels), self.distance)
        retain, forget = distances.chunk(2)
        means = global_mean(torch.stack([retain.mean().detach(), forget.mean().detach()]))
        forgetting = bounded_cross_entropy(forget, self._bound, lambda _: means[1])
        output.loss = output.loss + self.forget_weight * forgetting + self.retain_weight * retain.mean()
        output.metrics |= {"retain_distance": means[0], "forget_distance": means[1]}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def distillation_loss(logits: Tensor, earlier: Tensor, excluded_classes: Sequence[int] = ()) -> Tensor:
    """
    Mean KL(p_before ‖ p_now) over the classes that are not left out; one that the model rules out (logit −∞) adds 0.

    Args:
        logits (`torch.Tensor`):
            Shape `(B, C)`, with gradient.
        earlier (`torch.Tensor`):
            The same shape, of the model before the task.
        excluded_classes (`Sequence[int]`, *optional*, defaults to none):
            Classes that both probabilities are conditioned on not being; fewer than C.

    Returns:
        `torch.Tensor`: Scalar in nats, not negative.
    """
    stays = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    stays[list(excluded_classes)] = False
    now, before = (x[:, stays].float().log_softmax(1) for x in (logits, earlier))
    # A class that the model rules out with a logit of -inf adds 0, not 0 · (-inf + inf).
    difference = (before - now).masked_fill(before == -math.inf, 0.0)
    return (before.exp() * difference).sum(1).mean()


class DistillationObjective(Objective):
    r"""
    Adds w_d · KL(p_before ‖ p_now) to the objective of a classifier, over all classes but those to forget: knowledge
    distillation (https://arxiv.org/abs/1503.02531) as Learning without Forgetting uses it
    (https://arxiv.org/abs/1606.09282), with the classes to forget left out. Not part of the papers' method.

    Nothing else speaks for classes that have no training data. What the earlier model says of them on the images of
    others does, on those to forget, too: how they resemble the classes that stay need not change. Where every class
    has data the half to keep says enough, and the half to forget is better left to the forgetting term
    (docs/benchmarks.md). What earlier requests forgot is held as forgotten as it was. The earlier model is the one
    that trains with its adapter off, so that nothing is stored; it costs a second forward without gradient.

    Args:
        objective ([`Objective`]):
            What the term is added to; its outputs must hold the logits.
        weight (`float`):
            w_d.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains.
        excluded_classes (`Sequence[int]`, *optional*, defaults to none):
            The classes to forget, not those forgotten before.
        retain_only (`bool`, *optional*, defaults to `False`):
            Leave out the half to forget.
    """

    def __init__(
        self,
        objective: Objective,
        weight: float,
        adapter: str = "default",
        excluded_classes: Sequence[int] = (),
        retain_only: bool = False,
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.weight = weight
        self.adapter = adapter
        self.excluded_classes = list(excluded_classes)
        self.retain_only = retain_only

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        output = self.objective.training_step(model, inputs, global_mean)
        if output.logits is None:
            raise TypeError(f"{type(self.objective).__name__} gives no logits; expected those of a classifier.")
        # Past the wrapper for several processes, which would expect a backward pass. After the other forward: autocast
        # keeps what it has cast, and what was cast without gradient has none.
        own = unwrapped(model)
        size = len(inputs["labels"])
        rows = size // 2 if self.retain_only else size
        with reference_model(own, self.adapter):
            earlier = logits_of(own, _first_rows(inputs, rows, size))
        distillation = distillation_loss(output.logits[:rows], earlier, self.excluded_classes)
        output.loss = output.loss + self.weight * distillation
        output.metrics |= {"distillation": distillation.detach()}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def _first_rows(inputs: dict[str, Any], rows: int, size: int) -> dict[str, Any]:
    """The first rows of a batch of `size`; what does not belong to single samples stays as it is."""
    return {
        name: value[:rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in inputs.items()
    }
