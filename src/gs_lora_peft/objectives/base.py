"""The boundary between the trainer and a kind of model: its losses and its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import ACCURACY, MetricName, continual_forgetting_scores
from ..roles import ClassRoles


class Scoring(Protocol):
    """
    The scores of a kind of model, from its answers on a data set. Subclass it, and give it to an [`Objective`].

    Attributes:
        measure ([`MetricName`]):
            What the scores are, and how they are called.
    """

    measure: MetricName

    def gathered(self, outputs: Any, labels: Any) -> tuple[Any, Any]:
        """Answers and right answers of one batch, as tensors that can be put together over batches and processes.

        The Trainer does so along the first dimension, one row for each sample, and fills the second one up with -100.

        Args:
            outputs (tensor, or tuple of tensors):
                What `evaluation_step` gave, without the names.
            labels (*any*):
                The labels of the batch.
        """
        return outputs, labels

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        """The scores of a task: `<prefix>_forget`, `<prefix>_retain`, `<prefix>_old`, `<prefix>_missing`, `drop` and
        `h_mean`, each a fraction or `None`, and what else there is to report.

        Args:
            answers (`np.ndarray`):
                What [`~Scoring.gathered`] gave, of a whole data set.
            labels (`np.ndarray`):
                The same of the right answers.
            roles ([`ClassRoles`]):
                Which classes are to be forgotten, kept, ...
            forget_before (`float`, *optional*):
                `<prefix>_forget` of the model before the task, for Drop and H.
        """
        ...

    def names(self) -> list[str]:
        """What [`~Scoring.by_role`] calls its scores; empty where that is not known before there are answers."""
        return []

    def by_class(self, answers: Any, labels: Any) -> dict[int, tuple[float, int]]:
        """For each class that the data have, a sum and a weight: the score of any set of classes is the sum of their
        sums over the sum of their weights.

        Args:
            answers (`np.ndarray`):
                As in [`~Scoring.by_role`].
            labels (`np.ndarray`):
                As in [`~Scoring.by_role`].
        """
        ...


class ClassificationScoring(Scoring):
    """Accuracy: the share of samples whose largest logit is that of their class."""

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


GlobalMean = Callable[[Tensor], Tensor]


def identity(tensor: Tensor) -> Tensor:
    """The mean over processes where there is one process."""
    return tensor


@dataclass
class ObjectiveOutput:
    """
    The loss of one joint batch and what is worth logging of it.

    Attributes:
        loss (`torch.Tensor`):
            Scalar to differentiate: L_retain + β · the forgetting term, and whatever else counts.
        retain_loss (`torch.Tensor`):
            L_retain, detached, mean over all processes.
        forget_loss (`torch.Tensor`):
            L_forget, detached and unbounded, mean over all processes.
        metrics (`dict[str, torch.Tensor]`):
            Further scalars of this process, detached; the same names at every step.
        logits (`torch.Tensor`, *optional*):
            Of a classifier: shape `(2·B, C)`, as the model gave them, with gradient.
        outputs (`dict[str, torch.Tensor]`):
            What the model answered, by name as in `evaluation_step`, with gradient; the trainer's `compute_loss(...,
            return_outputs=True)` returns it.
    """

    loss: Tensor
    retain_loss: Tensor
    forget_loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """
    What "forget" and "retain" mean for a kind of model. Subclass it; [`GSLoraTrainer`] knows nothing else of the kind.

    `model` is what the trainer calls, a `PeftModel` and under DDP a wrapper around it: [`unwrapped`] leads to the
    model's configuration and heads, while the forward must go through `model` itself.

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
            [`ObjectiveOutput`]
        """
        ...

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The loss of an ordinary batch and the outputs that metrics are computed from, without gradient.

        Args:
            model (`torch.nn.Module`):
                The model, in eval mode.
            inputs (`dict`):
                A batch of samples of any classes.

        Returns:
            `tuple[torch.Tensor, dict]`: A scalar, and the tensors to gather by name.
        """
        ...

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        """Looks at the training data before the first step; by default at nothing.

        Called at the start of every training, also of one that is resumed.

        Args:
            model (`torch.nn.Module`):
                The model as it was before the task: without the adapter that trains, in eval mode and without
                gradient.
            batches (`Callable`):
                Gives this process's share of both training sets, in batches on the device.
            global_sum (`Callable`, *optional*):
                Sums a tensor over processes; identity by default.
        """
        return None
