"""Continual forgetting as a metric of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate

from .scores import answers, continual_forgetting_scores
from .settings import checked_settings, settings_to_compute

_DESCRIPTION = """
How well a classifier forgot some classes and kept the others: accuracy on the classes to forget, to retain, forgotten
before and kept without data, the drop of the first, and H, the harmonic mean of the accuracy kept and the drop.
"""

_INPUTS = """
Args:
    predictions (`array` of shape `(n,)`): Predicted class ids, whole numbers.
    references (`array` of shape `(n,)`): True class ids, whole numbers from 0 up.
"""

_CITATION = """
@article{zhao2026practical,
  title={Practical Continual Forgetting for Pre-trained Vision Models},
  author={Zhao, Hongbo and Zhu, Fei and Ni, Bolin and Zhu, Feng and Meng, Gaofeng and Zhang, Zhaoxiang},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2026}
}
"""


class ContinualForgetting(evaluate.Metric):
    """Scores the predictions of a model that forgets classes task after task.

    A class of its own, not a script to download: it works offline. Several processes can share one computation
    (`num_process`, `process_id`, `experiment_id` and a `cache_dir` all of them see); every process has to add a batch,
    if need be an empty one, and process 0 gets the scores. For `evaluate.combine` give the classes here, since what is
    given to the `compute` of a combination goes to all of its metrics.

    Args:
        config_name (`str`, *optional*): See `evaluate.Metric`.
        forget_classes (`Iterable[int]`, *optional*): Ids of the classes the task forgets. Needed here or in `compute`.
        old_classes (`Iterable[int]`, *optional*, defaults to none): Ids of the classes that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none): Ids of classes kept without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to every class named nowhere else):
            Ids of the classes kept. Rows of classes named nowhere then count for nothing.
        accuracy_forget_before (`float`, *optional*):
            Acc_f of the model before the task, in [0, 1]. Without it there is neither `drop` nor `h_mean`.
        kwargs (*optional*):
            Passed on to `evaluate.Metric`: `keep_in_memory`, `cache_dir`, `num_process`, `process_id`, …

    Raises:
        ValueError: A class has two roles or is not an id, or the accuracy is not a fraction.

    Example:

    ```python
    >>> metric = ContinualForgetting(forget_classes=[0, 4])
    >>> before = metric.compute(predictions=[0, 4, 1, 2], references=[0, 4, 1, 2])
    >>> after = metric.compute(
    ...     predictions=[1, 2, 1, 2], references=[0, 4, 1, 2], accuracy_forget_before=before["acc_forget"]
    ... )
    >>> after["acc_forget"], after["h_mean"]
    (0.0, 1.0)
    ```
    """

    def __init__(
        self,
        config_name: str | None = None,
        *,
        forget_classes: Iterable[int] | None = None,
        old_classes: Iterable[int] = (),
        missing_classes: Iterable[int] = (),
        retain_classes: Iterable[int] | None = None,
        accuracy_forget_before: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._settings = checked_settings(
            "accuracy_forget_before",
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            retain_classes=retain_classes,
            accuracy_forget_before=accuracy_forget_before,
        )
        super().__init__(config_name=config_name, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one prediction and its reference.

        Raises:
            ValueError: One of them is not a class id.
        """
        # By way of the batch, which is checked: the parent would store 1.7 as 1.
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds a batch of predictions and references.

        Raises:
            ValueError: They differ in length or are not class ids.
        """
        predictions, references = answers(predictions, references)
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
        accuracy_forget_before: float | None = None,
        **kwargs: Any,
    ) -> dict[str, float | int | None] | None:
        """Scores everything added so far and starts anew. What is not given is taken from the constructor.

        Returns:
            `dict[str, float | int | None]`: `acc_retain` (Acc_r), `acc_forget` (Acc_f), `acc_old` (Acc_o),
            `acc_missing` (Acc_m), `drop` (Drop), `h_mean` (H), `n_retain`, `n_forget`, `n_old` and `n_missing`,
            explained at [`continual_forgetting_scores`]. `None` in every process but the first.

        Raises:
            ValueError: No `forget_classes` here or in the constructor; predictions, references, classes or the
                accuracy cannot be used. What was added before stays.
        """
        # Before the parent closes its files: an error past that point would leave their locks behind.
        settings = settings_to_compute(
            self._settings,
            "accuracy_forget_before",
            "classes",
            forget_classes=forget_classes,
            old_classes=old_classes,
            missing_classes=missing_classes,
            retain_classes=retain_classes,
            accuracy_forget_before=accuracy_forget_before,
        )
        return super().compute(predictions=predictions, references=references, **settings, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
            reference_urls=["https://arxiv.org/abs/2403.11530", "https://arxiv.org/abs/2501.09705"],
            format="numpy",
        )

    def _compute(self, *, predictions: Any, references: Any, **settings: Any) -> dict[str, float | int | None]:
        return continual_forgetting_scores(predictions, references, **settings)
