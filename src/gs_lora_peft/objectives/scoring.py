"""How what a kind of model answers is compared with what is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypedDict

import numpy as np
import torch

from ..metrics import continual_forgetting_scores
from ..metrics.measures import ACCURACY, MetricName


class ClassRoles(TypedDict):
    """The classes of a task by role, as lists of ids."""

    forget_classes: Iterable[int]
    retain_classes: Iterable[int]
    old_classes: Iterable[int]
    missing_classes: Iterable[int]


class Scoring(Protocol):
    """
    The scores of a kind of model, from its answers on a data set. Subclass it, and give it to an [`Objective`].

    Attributes:
        measure ([`MetricName`]): what the scores are, and how they are called.
    """

    measure: MetricName

    def gathered(self, outputs: Any, labels: Any) -> tuple[Any, Any]:
        """Answers and right answers of one batch, as tensors that can be put together over batches and processes.

        The Trainer does so along the first dimension, one row for each sample, and fills the second one up with -100.

        Args:
            outputs (tensor, or tuple of tensors): what `evaluation_step` gave, without the names.
            labels (*any*): the labels of the batch.
        """
        return outputs, labels

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        """The scores of a task: `<prefix>_forget`, `<prefix>_retain`, `<prefix>_old`, `<prefix>_missing`, `drop` and
        `h_mean`, each a fraction or `None`, and what else there is to report.

        Args:
            answers (`np.ndarray`): what [`~Scoring.gathered`] gave, of a whole data set.
            labels (`np.ndarray`): the same of the right answers.
            roles ([`ClassRoles`]): which classes are to be forgotten, kept, ...
            forget_before (`float`, *optional*): `<prefix>_forget` of the model before the task, for Drop and H.
        """
        ...

    def names(self) -> list[str]:
        """What [`~Scoring.by_role`] calls its scores; empty where that is not known before there are answers."""
        return []

    def by_class(self, answers: Any, labels: Any) -> dict[int, tuple[float, int]]:
        """For each class that the data have, a sum and a weight: the score of any set of classes is the sum of their
        sums over the sum of their weights.

        Args:
            answers (`np.ndarray`), labels (`np.ndarray`): as in [`~Scoring.by_role`].
        """
        ...


class ClassificationScoring(Scoring):
    """Accuracy: the share of samples whose largest logit is that of their class."""

    measure = ACCURACY

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        predictions, references = _predicted(answers), np.asarray(labels)
        return continual_forgetting_scores(predictions, references, **roles, accuracy_forget_before=forget_before)

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
