"""Continual forgetting as a metric of the `evaluate` library."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

# By their full names: `evaluate.load` can copy this file elsewhere.
from gs_lora_peft.metrics.forgetting_metric import ForgettingMetric
from gs_lora_peft.metrics.scores import class_ids, continual_forgetting_scores

_SUMMARY = """
How well a classifier forgot some classes and kept the others: accuracy on the classes to forget, to retain, forgotten
earlier and kept without data; the drop of the first; and H, the harmonic mean of retained accuracy and drop.
"""

_INPUTS = """
Args:
    predictions (`array` of shape `(n,)`): Predicted class ids, whole numbers.
    references (`array` of shape `(n,)`): True class ids, whole numbers from 0 up.
"""


class ContinualForgetting(ForgettingMetric):
    """Scores the predictions of a model that forgets classes task after task.

    The class works offline, without a script to download. Several processes can share one computation (`num_process`,
    `process_id`, `experiment_id` and a common `cache_dir`): every process adds a batch, which may be empty, and
    process 0 gets the scores. For `evaluate.combine` pass the classes here, because a combination passes the arguments
    of `compute` to all its metrics.

    `compute` takes the same classes and `accuracy_forget_before`, and returns the scores of
    [`continual_forgetting_scores`].

    Args:
        config_name (`str`, *optional*):
            See `evaluate.Metric`.
        forget_classes (`Iterable[int]`, *optional*):
            Ids of the classes to forget. Needed here or in `compute`.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of the classes that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of classes to retain without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to all other classes):
            Ids of the classes to retain. If given, rows of classes without a role are ignored.
        accuracy_forget_before (`float`, *optional*):
            Acc_f of the model before the task, in [0, 1]. Without it `drop` and `h_mean` are `None`.
        kwargs (*optional*):
            Passed on to `evaluate.Metric`: `keep_in_memory`, `cache_dir`, `num_process`, `process_id`, ….

    Raises:
        InvalidInputError: If a class has two roles or is not an id, or if the accuracy is not a fraction.

    Example:
        ```py
        >>> metric = ContinualForgetting(forget_classes=[0, 4])
        >>> before = metric.compute(predictions=[0, 4, 1, 2], references=[0, 4, 1, 2])
        >>> after = metric.compute(
        ...     predictions=[1, 2, 1, 2], references=[0, 4, 1, 2], accuracy_forget_before=before["acc_forget"]
        ... )
        >>> after["acc_forget"], after["h_mean"]
        (0.0, 1.0)
        ```
    """

    score_before = "accuracy_forget_before"
    summary = _SUMMARY
    inputs = _INPUTS
    data_format = "numpy"
    score = staticmethod(continual_forgetting_scores)

    def _rows(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        return class_ids(predictions, references)

    def _features(self) -> datasets.Features:
        return datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
