"""Continual forgetting as a metric of the `evaluate` library."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

# By their full names: `evaluate.load` can copy this file elsewhere.
from gs_lora_peft.metrics.forgetting_metric import ForgettingMetric
from gs_lora_peft.metrics.scores import answers, continual_forgetting_scores

_SUMMARY = """
How well a classifier forgot some classes and kept the others: accuracy on the classes to forget, to retain, forgotten
before and kept without data, the drop of the first, and H, the harmonic mean of the accuracy kept and the drop.
"""

_INPUTS = """
Args:
    predictions (`array` of shape `(n,)`): Predicted class ids, whole numbers.
    references (`array` of shape `(n,)`): True class ids, whole numbers from 0 up.
"""


class ContinualForgetting(ForgettingMetric):
    """Scores the predictions of a model that forgets classes task after task.

    It is a class, not a script to download, and works offline. Several processes can share one computation
    (`num_process`, `process_id`, `experiment_id` and a `cache_dir` that all of them see): every process adds a batch,
    if need be an empty one, and process 0 gets the scores. For `evaluate.combine` give the classes here, because a
    combination passes the arguments of `compute` to all of its metrics.

    `compute` takes the same classes and `accuracy_forget_before` and returns the scores of
    [`continual_forgetting_scores`].

    Args:
        config_name (`str`, *optional*):
            See `evaluate.Metric`.
        forget_classes (`Iterable[int]`, *optional*):
            Ids of the classes the task forgets. Needed here or in `compute`.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of the classes that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of classes kept without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to every class named nowhere else):
            Ids of the classes kept. Rows of classes named nowhere are then ignored.
        accuracy_forget_before (`float`, *optional*):
            Acc_f of the model before the task, in [0, 1]. Without it `drop` and `h_mean` are `None`.
        kwargs (*optional*):
            Passed on to `evaluate.Metric`: `keep_in_memory`, `cache_dir`, `num_process`, `process_id`, ….

    Raises:
        ValueError: If a class has two roles or is not an id, or if the accuracy is not a fraction.

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

    score_before = "accuracy_forget_before"
    summary = _SUMMARY
    inputs = _INPUTS
    data_format = "numpy"
    score = staticmethod(continual_forgetting_scores)

    def _rows(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        return answers(predictions, references)

    def _features(self) -> datasets.Features:
        return datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
