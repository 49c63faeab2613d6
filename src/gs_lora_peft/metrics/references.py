"""What a detector should find, as [`detection_scores`] reads it: from a dataset's rows, or from a batch's labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .detection import as_array


def references_from_objects(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
    """References in pixels from the annotations of a dataset.

    Args:
        objects (`Iterable[Mapping]`): For each image `bbox`, boxes as (x, y, w, h), `category`, ids, and where there
            are crowds `iscrowd`: the column `objects` of a dataset that [`prepare_boxes`] gave.

    Returns:
        `list[dict[str, np.ndarray]]`: `boxes`, `labels` and `iscrowd` for each image, as [`detection_scores`] wants.
    """
    references = []
    for row in objects:
        boxes = np.asarray(row["bbox"], dtype=np.float64).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        crowd = row.get("iscrowd")
        references.append(
            {
                "boxes": corners,
                "labels": np.asarray(row["category"], dtype=np.int64),
                "iscrowd": np.zeros(len(boxes), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool),
            }
        )
    return references


def references_from_labels(labels: Iterable[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
    """References as shares of the image from the labels a detector is trained on.

    They go with `post_process_object_detection(outputs, threshold=0.0)`, called without `target_sizes`.

    Args:
        labels (`Iterable[Mapping]`): For each image `boxes`, (cx, cy, w, h) as shares of the image, and
            `class_labels`, as transformers' image processors give them.

    Returns:
        `list[dict[str, np.ndarray]]`: `boxes` and `labels` for each image, as [`detection_scores`] wants.
    """
    references = []
    for label in labels:
        boxes = as_array(label["boxes"], np.float64).reshape(-1, 4)
        half = boxes[:, 2:] / 2
        corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        references.append({"boxes": corners, "labels": as_array(label["class_labels"], np.int64)})
    return references
