"""Continual forgetting of object categories as a metric of the `evaluate` library."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import datasets
import numpy as np

# By their full names: `evaluate.load` can copy this file elsewhere.
from gs_lora_peft.metrics.detection import (
    Boxes,
    check_same_images,
    detection_scores,
    predicted_boxes,
    reference_boxes,
)
from gs_lora_peft.metrics.forgetting_metric import ForgettingMetric

_SUMMARY = """
How well a detector forgot some categories and kept the others: COCO AP, AP50 and AR of the categories to forget, to
retain, forgotten earlier and kept without data; the drop of AP on the first; and H, the harmonic mean of retained AP
and drop.
"""

_INPUTS = """
Args:
    predictions: for each image `boxes` (x0, y0, x1, y1), `scores` and `labels`.
    references: for each image `boxes` (x0, y0, x1, y1), `labels` and optionally `iscrowd`.
"""


class ContinualDetection(ForgettingMetric):
    """Scores the predictions of a detector that forgets categories task after task.

    The class works offline, without a script to download. Several processes can share one computation (`num_process`,
    `process_id`, `experiment_id` and a common `cache_dir`): every process adds a batch, which may be empty, and
    process 0 gets the scores. An image that two processes add counts twice.

    `compute` takes the same classes and `ap_forget_before`, and returns the scores of [`detection_scores`].

    Args:
        config_name (`str`, *optional*):
            See `evaluate.Metric`.
        forget_classes (`Iterable[int]`, *optional*):
            Ids of the categories to forget. Needed here or in `compute`.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of the categories that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Ids of categories to retain without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to all other categories):
            Ids of the categories to retain.
        ap_forget_before (`float`, *optional*):
            AP_f of the model before the task, in [0, 1]. Without it `drop` and `h_mean` are `None`.
        kwargs (*optional*):
            Passed on to `evaluate.Metric`: `keep_in_memory`, `cache_dir`, `num_process`, `process_id`, ….

    Raises:
        InvalidInputError: If a category has two roles or is not an id, or if the AP is not a fraction.

    Example:
        ```py
        >>> metric = ContinualDetection(forget_classes=[0])
        >>> for batch in loader:
        ...     outputs = model(batch["pixel_values"])
        ...     found = processor.post_process_object_detection(outputs, threshold=0.0)
        ...     metric.add_batch(predictions=found, references=references_from_labels(batch["labels"]))
        >>> metric.compute()["ap_retain"]
        0.431
        ```
    """

    score_before = "ap_forget_before"
    summary = _SUMMARY
    inputs = _INPUTS
    score = staticmethod(detection_scores)

    def _rows(self, predictions: Any, references: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        found, truth = predicted_boxes(predictions), reference_boxes(references)
        check_same_images(found, truth)
        return _by_image(found, "scores"), _by_image(truth, "iscrowd")

    def _features(self) -> datasets.Features:
        columns = {
            "boxes": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
            "labels": datasets.List(datasets.Value("int64")),
        }
        return datasets.Features(
            {
                "predictions": {**columns, "scores": datasets.List(datasets.Value("float64"))},
                "references": {**columns, "iscrowd": datasets.List(datasets.Value("bool"))},
            }
        )


def _by_image(boxes: Boxes, extra: str) -> list[dict[str, Any]]:
    """Returns the boxes of each image as plain lists."""
    edges = np.searchsorted(boxes.images, np.arange(boxes.num_images + 1))
    pieces = [slice(start, end) for start, end in pairwise(edges)]
    return [
        {
            "boxes": boxes.corners[piece].tolist(),
            "labels": boxes.labels[piece].tolist(),
            extra: boxes.values[piece].tolist(),
        }
        for piece in pieces
    ]
