"""Terms that wrap the objective of a classifier: prototypes and distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import reference_model, unwrapped
from ..errors import InvalidInputError
from .base import LossArguments, Objective, ObjectiveOutput, Task
from .heads import captured_embeddings, find_head, head_size, logits_of
from .losses import (
    GlobalMean,
    PrototypeDistance,
    bounded_cross_entropy,
    distillation_loss,
    embedding_distances,
    identity,
)
from .states import rows_of

DISTILLATION_WEIGHT = 1.0  # w_d by default where classes have no training data; docs/experiments/faces.md


@dataclass(frozen=True)
class ClassPrototypes:
    """The mean embedding of every class, on the device of the model.

    Attributes:
        means (`torch.Tensor`):
            float32, shape `(num_labels, width)`; zero for a class without samples.
        counts (`torch.Tensor`):
            int64, shape `(num_labels,)`: samples of each class; with augmentation, their views.
    """

    means: Tensor
    counts: Tensor

    @classmethod
    @torch.no_grad()
    def compute(
        cls, model: nn.Module, batches: Iterable[dict[str, Any]], global_sum: GlobalMean = identity
    ) -> ClassPrototypes:
        """Averages the embeddings of each class in one pass over labelled data.

        Args:
            model (`torch.nn.Module`):
                A classifier, as it was before the task and in eval mode.
            batches (`Iterable[dict]`):
                This process's batches with `labels`, on the model's device.
            global_sum (`Callable`, *optional*):
                Sums a tensor over processes; identity by default.

        Returns:
            [`ClassPrototypes`]: The same prototypes in every process.

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
                # Sums in float64 give the same float32 mean in any order: whatever the atomic additions of a GPU, the
                # batch size and the number of processes.
                dtype = torch.float32 if embeddings.device.type == "mps" else torch.float64
                sums = torch.zeros(num_labels, embeddings.shape[1], dtype=dtype, device=embeddings.device)
                counts = torch.zeros(num_labels, dtype=dtype, device=embeddings.device)
            sums.index_add_(0, labels, embeddings.to(sums.dtype))
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        if sums is None or counts is None:
            expected = "at least one sample in each process, because prototypes are means of samples"
            raise InvalidInputError("batches", [], expected, "Use at most as many processes as there are samples.")
        sums, counts = global_sum(sums), global_sum(counts)
        return cls((sums / counts.clamp(min=1)[:, None]).float(), counts.long())

    def of(self, labels: Tensor) -> Tensor:
        """The prototype of each sample's class: shape `(B, width)` for labels of shape `(B,)`."""
        return self.means[labels]

    def mean_distance(self, kind: PrototypeDistance = "kl") -> Tensor:
        """Mean distance between the prototypes of two different classes, a scalar; 0 with a single class."""
        means = self.means[self.counts > 0]
        # The distance of a class from itself is 0.
        sums = [embedding_distances(row.expand_as(means), means, kind).sum() for row in means]
        return torch.stack(sums).sum() / max(len(means) * (len(means) - 1), 1)


class PrototypeObjective(Objective):
    r"""Adds the prototype terms of GS-LoRA++ (https://arxiv.org/abs/2501.09705, §3.4) to a classifier's objective.

    The terms are w_f · ReLU(BND_pro − D_f) + w_r · D_r, where D_f and D_r are the mean distances of the embeddings of
    the forget and the retain half from the prototypes of their classes.

    The model as it was before the task computes the prototypes from the samples of both training sets. A training that
    resumes computes them again; they are not stored.

    Args:
        objective ([`Objective`]):
            The objective that the terms are added to; its forward must go through the model's single head.
        forget_weight (`float`):
            w_f.
        retain_weight (`float`):
            w_r.
        bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND_pro, in the unit of the distance. `"auto"` is the mean distance between the prototypes of two different
            classes: a forgotten sample ends as far from its class as other classes are. The papers' 18 belongs to
            CosFace embeddings of width 512.
        distance (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            See [`embedding_distances`].

    Attributes:
        prototypes ([`ClassPrototypes`] or `None`):
            The prototypes; `None` before [`~PrototypeObjective.prepare`].
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
            raise RuntimeError("There are no prototypes yet. Call prepare() before the first step.")
        with captured_embeddings(model, self._path) as captured:
            output = self.objective.training_step(model, inputs, global_mean)
        labels = inputs["labels"]
        # Softmax and norms stay in float32, also under autocast.
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


class DistillationObjective(Objective):
    r"""Adds w_d · KL(p_before ‖ p_now) to the objective of a classifier, over all classes but those to forget.

    This is knowledge distillation (https://arxiv.org/abs/1503.02531) as Learning without Forgetting uses it
    (https://arxiv.org/abs/1606.09282), without the classes to forget. It is not part of the papers' method.

    No other term holds classes that have no training data. Here the earlier model's predictions on samples of other
    classes hold them. Samples to forget help, too: their resemblance to the kept classes need not change. If every
    class has data, the half to keep suffices, and the forgetting term should act alone on the half to forget
    (docs/experiments/faces.md). Classes that earlier requests forgot stay as forgotten as they were.

    The earlier model is the one that trains, with its adapter disabled. Nothing is stored; each step costs a second
    forward without gradient.

    Args:
        objective ([`Objective`]):
            The objective that the term is added to; its outputs must hold the logits.
        weight (`float`):
            w_d.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains.
        excluded_classes (`Sequence[int]`, *optional*, defaults to none):
            The classes to forget, not those forgotten before.
        retain_only (`bool`, *optional*, defaults to `False`):
            Whether the term skips the half to forget.
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
        # Without the wrapper for several processes, which would expect a backward pass. After the other forward:
        # autocast caches its casts, and a cast that was made without gradient has none.
        own = unwrapped(model)
        size = len(inputs["labels"])
        rows = size // 2 if self.retain_only else size
        with reference_model(own, self.adapter):
            earlier = logits_of(own, rows_of(inputs, slice(rows)))
        distillation = distillation_loss(output.logits[:rows], earlier, self.excluded_classes)
        output.loss = output.loss + self.weight * distillation
        output.metrics |= {"distillation": distillation.detach()}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def with_prototypes(objective: Objective, model: nn.Module, args: LossArguments) -> Objective:
    """Wraps a classifier's objective in a [`PrototypeObjective`] if one of the prototype weights is not 0.

    Raises:
        NoEmbeddingFoundError: If one is not 0 and the model's embedding cannot be found.
    """
    if not args.prototype_forget_weight and not args.prototype_retain_weight:
        return objective
    find_head(model)
    return PrototypeObjective(
        objective,
        forget_weight=args.prototype_forget_weight,
        retain_weight=args.prototype_retain_weight,
        bound=args.prototype_bound,
        distance=args.prototype_distance,
    )


def with_distillation(objective: Objective, model: nn.Module, args: LossArguments, task: Task) -> Objective:
    """Wraps a classifier's objective in a [`DistillationObjective`] if its weight is not 0.

    It must be the outermost wrapper, because its second forward also goes through the head.

    Raises:
        InvalidInputError: If the weight is not 0 and the model's own weights train instead of an adapter.
    """
    weight = args.distillation_weight
    if task.adapter is None:
        if weight not in ("auto", 0):
            raise no_distillation(weight, "the model's own weights train, and the earlier model is gone")
        return objective
    if weight == "auto":
        weight = DISTILLATION_WEIGHT if task.roles.missing else 0.0
    num_labels = head_size(model)
    if num_labels is not None and num_labels - len(task.roles.forget) < 2:
        weight = 0.0  # one class is left: its probability is 1 before and after
    if not weight:
        return objective
    roles = task.roles
    return DistillationObjective(objective, weight, task.adapter, roles.forget, retain_only=not roles.missing)


def no_distillation(weight: float | str, why: str) -> InvalidInputError:
    """The error for a distillation weight that cannot be used."""
    return InvalidInputError("distillation_weight", weight, f"'auto' or 0: {why}", "Leave it out.")
