"""What the trainer knows of a kind of model: an [`Objective`] with its losses, and a [`Scoring`]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import ACCURACY, MetricName, continual_forgetting_scores
from ..roles import NO_ROLES, ClassRoles
from .heads import check_class_head
from .losses import DepthTarget, ForgetLoss, GlobalMean, PrototypeDistance, identity


class Scoring(Protocol):
    """Scores a kind of model by its predictions on a dataset. Subclass it, and give it to an [`Objective`].

    Attributes:
        measure ([`MetricName`]):
            The metric, and how its scores are called.
    """

    measure: MetricName

    def gathered(self, outputs: Any, labels: Any) -> tuple[Any, Any]:
        """Predictions and references of one batch, as tensors that can be gathered over batches and processes.

        The Trainer concatenates them along the first dimension, one row for each sample, and pads the second dimension
        with -100.

        Args:
            outputs (`torch.Tensor` or tuple of `torch.Tensor`):
                The values of the outputs of `evaluation_step`.
            labels (`Any`):
                The labels of the batch.

        Returns:
            `tuple`: Predictions and references.
        """
        return outputs, labels

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        """The scores of a task.

        Args:
            answers (`np.ndarray`):
                The predictions of [`~Scoring.gathered`] on a whole dataset.
            labels (`np.ndarray`):
                The references of [`~Scoring.gathered`].
            roles ([`ClassRoles`]):
                The classes to forget, to retain, ...
            forget_before (`float`, *optional*):
                `<prefix>_forget` of the model before the task, for Drop and H.

        Returns:
            `dict`: `<prefix>_forget`, `<prefix>_retain`, `<prefix>_old`, `<prefix>_missing`, `drop` and `h_mean`, each
            a fraction or `None`, and further scores of the metric.
        """
        ...

    def names(self) -> list[str]:
        """Names of the scores of [`~Scoring.by_role`]; empty where they depend on the predictions."""
        return []

    def by_class(self, answers: Any, labels: Any) -> dict[int, tuple[float, int]]:
        """A sum and a weight for each class in the data.

        The score of a set of classes is the sum of their sums divided by the sum of their weights.

        Args:
            answers (`np.ndarray`):
                As in [`~Scoring.by_role`].
            labels (`np.ndarray`):
                As in [`~Scoring.by_role`].

        Returns:
            `dict[int, tuple[float, int]]`: Sum and weight by class id.
        """
        ...


class ClassificationScoring(Scoring):
    """Accuracy: the fraction of samples whose largest logit is that of their class."""

    measure = ACCURACY

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        classes, before = roles.as_keywords(), forget_before
        return continual_forgetting_scores(
            _predicted(answers), np.asarray(labels), **classes, accuracy_forget_before=before
        )

    def names(self) -> list[str]:
        return list(continual_forgetting_scores([], [], forget_classes=[0]))

    def by_class(self, answers: Any, labels: Any) -> dict[int, tuple[float, int]]:
        right, references = _predicted(answers) == np.asarray(labels), np.asarray(labels)
        classes, codes, counts = np.unique(references, return_inverse=True, return_counts=True)
        hits = np.bincount(codes, weights=right, minlength=len(classes))
        return {
            int(class_id): (float(sum_), int(count))
            for class_id, sum_, count in zip(classes, hits, counts, strict=True)
        }


def _predicted(logits: Any) -> np.ndarray:
    logits = logits[0] if isinstance(logits, tuple) else logits
    return (logits.float().numpy() if isinstance(logits, torch.Tensor) else np.asarray(logits)).argmax(-1)


@dataclass
class ObjectiveOutput:
    """The loss of one joint batch, and values to log.

    Attributes:
        loss (`torch.Tensor`):
            Scalar to differentiate: L_retain + β · the forgetting term + further terms.
        retain_loss (`torch.Tensor`):
            L_retain, detached, mean over all processes.
        forget_loss (`torch.Tensor`):
            L_forget, detached and unbounded, mean over all processes.
        metrics (`dict[str, torch.Tensor]`):
            Further scalars of this process, detached, under the same names at every step.
        logits (`torch.Tensor`, *optional*):
            Logits of a classifier, shape `(2·B, C)`, as the model returned them, with gradient.
        outputs (`dict[str, torch.Tensor]`):
            Outputs of the model, by name as in `evaluation_step`, with gradient. The trainer's `compute_loss(...,
            return_outputs=True)` returns them.
    """

    loss: Tensor
    retain_loss: Tensor
    forget_loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What "forget" and "retain" mean for a kind of model.

    Subclass it. [`GSLoraTrainer`] knows nothing else about the kind of model.

    `model` is the module that the trainer calls: a `PeftModel`, and under DDP a wrapper around it. Call `model` itself
    for a forward. [`unwrapped`] leads to the model's configuration and heads.

    Attributes:
        scoring ([`Scoring`]):
            How evaluation compares the outputs of `evaluation_step` with the labels; by default as logits of a
            classifier.
    """

    scoring: Scoring = ClassificationScoring()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        """One joint forward and its losses.

        Args:
            model (`torch.nn.Module`):
                The model, in training mode.
            inputs (`dict`):
                A joint batch: B samples to keep, then B samples to forget.
            global_mean (`Callable`, *optional*):
                Averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`]: The loss, and values to log.
        """
        ...

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The loss and the outputs of an ordinary batch, without gradient.

        Args:
            model (`torch.nn.Module`):
                The model, in eval mode.
            inputs (`dict`):
                A batch of samples of any classes.

        Returns:
            `tuple[torch.Tensor, dict]`: A scalar loss, and the tensors that metrics are computed from, by name.
        """
        ...

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        """Reads the training data before the first step; by default it does nothing.

        The trainer calls it at the start of every training, also when it resumes one.

        Args:
            model (`torch.nn.Module`):
                The model as it was before the task: without the adapter that trains, in eval mode and without
                gradient.
            batches (`Callable`):
                Returns this process's share of both training sets, in batches on the device.
            global_sum (`Callable`, *optional*):
                Sums a tensor over processes; identity by default.
        """
        return None


class LossArguments(Protocol):
    """The fields of [`GSLoraTrainingArguments`] that objectives are built from."""

    forget_weight: float
    forget_loss: ForgetLoss
    forget_bound: Any  # a number or "auto"
    background: Literal["matched", "others"]
    prototype_forget_weight: float
    prototype_retain_weight: float
    prototype_bound: Any  # a number or "auto"
    prototype_distance: PrototypeDistance
    prototype_augmentations: int
    distillation_weight: Any  # a number or "auto"
    depth_weight: float
    depth_retain_weight: float
    depth_target: DepthTarget
    depth_blocks: str
    depth_radius: float


@dataclass(frozen=True)
class Task:
    """What an objective knows of the task besides the arguments.

    Args:
        roles ([`ClassRoles`], *optional*, defaults to none):
            The classes by role.
        adapter (`str`, *optional*):
            The adapter that trains; `None` if the model's own weights train.
    """

    roles: ClassRoles = NO_ROLES
    adapter: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of model. The file of its objective holds it, and `OBJECTIVES` lists it.

    Args:
        fits (`Callable`):
            Whether a model, a `PeftModel` or a bare one, is of this kind.
        make (`Callable`):
            Builds the [`Objective`] from the model, the [`GSLoraTrainingArguments`] and the [`Task`].
        check (`Callable`, *optional*, defaults to [`check_class_head`]):
            Refuses a model of this kind that cannot be trained, before any data is read.
    """

    fits: Callable[[nn.Module], bool]
    make: Callable[[nn.Module, LossArguments, Task], Objective]
    check: Callable[[nn.Module], None] = check_class_head


class LossMeter:
    """Sums the parts of the loss on the device, without a host synchronisation.

    Attributes:
        names (`tuple[str, ...]`):
            The parts, as the logs name them.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0
        self._finite: Tensor | None = None

    def add(self, output: ObjectiveOutput) -> None:
        """Adds one micro-batch."""
        parts = {"retain_loss": output.retain_loss, "forget_loss": output.forget_loss, **output.metrics}
        self.names = tuple(parts)
        values = torch.stack([part.float() for part in parts.values()])
        finite = torch.isfinite(torch.cat([values[:2], output.loss.detach().float().reshape(1)]))
        self._sum = values if self._sum is None else self._sum + values
        self._finite = finite if self._finite is None else self._finite & finite
        self._count += 1

    def finite(self) -> Tensor:
        """Whether L_retain, L_forget and the loss of this process were finite since the last call: bool, `(3,)`."""
        finite, self._finite = self._finite, None
        return finite if finite is not None else torch.ones(3, dtype=torch.bool)

    def sums(self) -> tuple[tuple[str, ...], Tensor | None, int]:
        """Returns the names, the sums since the last means and the number of micro-batches; fetches nothing."""
        return self.names, self._sum, self._count

    def put_back(self, names: Sequence[str], sums: Tensor | None, count: int) -> None:
        """Restores what [`~LossMeter.sums`] returned."""
        self.names, self._sum, self._count = tuple(names), sums, count

    def means(self) -> Tensor | None:
        """Returns the means since the last call, in the order of `names`, on the device; `None` without any batch."""
        if self._sum is None:
            return None
        means, self._sum, self._count = self._sum / self._count, None, 0
        return means
