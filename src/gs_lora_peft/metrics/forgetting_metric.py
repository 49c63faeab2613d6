"""Base class of the metrics for the `evaluate` library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import datasets
import evaluate

from ..errors import InvalidInputError
from ..roles import ClassRoles
from .scores import fraction

_CITATION = """
@article{zhao2026practical,
  title={Practical Continual Forgetting for Pre-trained Vision Models},
  author={Zhao, Hongbo and Zhu, Fei and Ni, Bolin and Zhu, Feng and Meng, Gaofeng and Zhang, Zhaoxiang},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2026}
}
"""

_PAPERS = ["https://arxiv.org/abs/2403.11530", "https://arxiv.org/abs/2501.09705"]


class ForgettingMetric(evaluate.Metric, ABC):
    """Base class of the metrics. It checks the classes of each role and every batch, and calls the function of scores.

    Attributes:
        score_before (`str`):
            Name of the setting with the score of the model before the task, e.g. `"ap_forget_before"`.
        summary (`str`):
            Description of the metric, for `evaluate`.
        inputs (`str`):
            Description of predictions and references, for `evaluate`.
        data_format (`str`, *optional*):
            Format in which stored batches are read, see `datasets.Dataset.set_format`; `None` means lists.
        score (`Callable`):
            Maps predictions, references and settings to the scores.
    """

    score_before: ClassVar[str]
    summary: ClassVar[str]
    inputs: ClassVar[str]
    data_format: ClassVar[str | None] = None
    score: ClassVar[Callable[..., dict[str, Any]]]

    def __init__(
        self,
        config_name: str | None = None,
        *,
        forget_classes: Iterable[int] | None = None,
        old_classes: Iterable[int] = (),
        missing_classes: Iterable[int] = (),
        retain_classes: Iterable[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self._settings = self._checked(
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            retain_classes=retain_classes,
            before=kwargs.pop(self.score_before, None),
        )
        super().__init__(config_name=config_name, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one prediction and its reference.

        Raises:
            InvalidInputError: If one of them cannot be scored.
        """
        # The parent's `add` would store 1.7 as 1.
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds a batch of predictions and references.

        Raises:
            InvalidInputError: If they differ in number or cannot be scored.
        """
        predictions, references = self._rows(predictions, references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        forget_classes: Iterable[int] | None = None,
        old_classes: Iterable[int] | None = None,
        missing_classes: Iterable[int] | None = None,
        retain_classes: Iterable[int] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Scores everything added so far and starts again. Settings that are left out come from the constructor.

        Returns:
            `dict[str, Any]`: The scores. `None` in all processes except the first.

        Raises:
            InvalidInputError: If `forget_classes` is given neither here nor to the constructor, or if predictions,
                references, classes or the score before the task cannot be used. Batches added before stay.
        """
        given = {
            "forget_classes": forget_classes,
            "old_classes": old_classes,
            "missing_classes": missing_classes,
            "retain_classes": retain_classes,
            "before": kwargs.pop(self.score_before, None),
        }
        # Checked before the parent closes its files, because a later error would leave their locks behind.
        settings = self._checked(
            **self._settings | {name: value for name, value in given.items() if value is not None}
        )
        if settings["forget_classes"] is None:
            raise InvalidInputError(
                "forget_classes",
                None,
                "the ids of the classes to forget",
                "Pass them to the constructor or to compute. An empty list scores a model that has forgotten nothing.",
            )
        settings[self.score_before] = settings.pop("before")
        return super().compute(predictions=predictions, references=references, **settings, **kwargs)

    @abstractmethod
    def _rows(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        """Returns a batch as it is stored.

        Raises:
            InvalidInputError: If it cannot be scored.
        """

    @abstractmethod
    def _features(self) -> datasets.Features:
        """Returns the types in which predictions and references are stored."""

    def _checked(self, before: Any, **classes: Iterable[int] | None) -> dict[str, Any]:
        # Sorted lists, because the first computation would exhaust an iterator.
        given = {name.removesuffix("_classes"): ids for name, ids in classes.items() if ids is not None}
        ids = {name: ids for name, ids in ClassRoles(**given).as_keywords().items() if classes[name] is not None}
        return {**dict.fromkeys(classes), **ids, "before": fraction(before, self.score_before)}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation=_CITATION,
            inputs_description=self.inputs,
            features=self._features(),
            reference_urls=_PAPERS,
            format=self.data_format,
        )

    def _compute(self, *, predictions: Any, references: Any, **settings: Any) -> dict[str, Any]:
        return self.score(predictions, references, **settings)
