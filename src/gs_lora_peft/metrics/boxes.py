"""Converts boxes: references of a data set or a batch for scoring, and batches to one tensor that can be gathered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from .detection import as_array

if TYPE_CHECKING:
    import torch

PADDING = -100.0  # `transformers.Trainer` pads tensors with it


def references_from_objects(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Returns references in pixels from the annotations of a data set, for [`detection_scores`].

    Args:
        objects (`Iterable[Mapping]`):
            For each image `bbox` (boxes as (x, y, w, h) in pixels), `category` (ids) and optionally `iscrowd`: the
            column `objects` of a data set from [`prepare_boxes`].

    Returns:
        `list[dict[str, np.ndarray]]`: For each image `boxes` of shape `(n, 4)` as (x0, y0, x1, y1), `labels` and
        `iscrowd` of shape `(n,)`.
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
    """Returns references as shares of the image from the labels of a batch, for [`detection_scores`].

    They fit the predictions of `post_process_object_detection(outputs, threshold=0.0)` without `target_sizes`.

    Args:
        labels (`Iterable[Mapping]`):
            For each image `boxes`, (cx, cy, w, h) as shares of the image, and `class_labels`, as the image processors
            of transformers return them.

    Returns:
        `list[dict[str, np.ndarray]]`: For each image `boxes` of shape `(n, 4)` as (x0, y0, x1, y1), and `labels` of
        shape `(n,)`.
    """
    references = []
    for label in labels:
        boxes = as_array(label["boxes"], np.float64).reshape(-1, 4)
        half = boxes[:, 2:] / 2
        corners = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        references.append({"boxes": corners, "labels": as_array(label["class_labels"], np.int64)})
    return references


def pack_boxes(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Packs all boxes of a batch into one tensor.

    `transformers.Trainer` and accelerate gather tensors over processes and batches, and pad them with -100 along the
    second dimension. They cannot gather lists of images with different numbers of boxes.

    Args:
        rows (`Sequence[Mapping[str, torch.Tensor]]`):
            For each image `boxes` of shape `(n, 4)`, `labels` of shape `(n,)` and `scores` of shape `(n,)` of
            predictions, or `iscrowd` of shape `(n,)` of references.

    Returns:
        `torch.Tensor`: Shape `(images, max(1, most boxes), 6)`, float64 (float32 on devices without it). The columns
        are label, score or `iscrowd` (0 without either), and box. Shorter images are padded with -100. A batch without
        boxes has one row of -100, because an empty dimension cannot be gathered.

    Raises:
        InvalidInputError: If there are no images.

    Example:
        ```py
        >>> found = processor.post_process_object_detection(outputs, threshold=0.0)
        >>> everywhere = unpack_boxes(accelerator.gather_for_metrics(accelerator.pad_across_processes(
        ...     pack_boxes(found), dim=1, pad_index=-100)))
        ```
    """
    import torch

    if len(rows) == 0:
        raise InvalidInputError("rows", rows, "at least one image", "Leave empty batches out.")
    tensors = []
    for row in rows:
        boxes, labels = torch.as_tensor(row["boxes"]), torch.as_tensor(row["labels"])
        values = torch.as_tensor(row.get("scores", row.get("iscrowd", torch.zeros(len(labels)))))
        columns = [labels[:, None], values[:, None].to(labels.device), boxes.reshape(-1, 4).to(labels.device)]
        dtype = torch.float32 if labels.device.type == "mps" else torch.float64
        tensors.append(torch.cat([column.to(dtype) for column in columns], dim=1))
    tensors[0] = torch.cat([tensors[0], tensors[0].new_full((max(0, 1 - len(tensors[0])), 6), PADDING)])
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PADDING)


def unpack_boxes(packed: Any) -> list[dict[str, Any]]:
    """Returns the boxes in a tensor from [`pack_boxes`], also after more padding.

    Args:
        packed (`torch.Tensor` or `np.ndarray`):
            Shape `(images, n, 6)`.

    Returns:
        `list[dict[str, torch.Tensor]]`: For each image `boxes` (float64), `labels` (int64), `scores` (float64) and
        `iscrowd` (bool). [`detection_scores`] reads `scores` of predictions and `iscrowd` of references.
    """
    import torch

    rows = []
    for image in torch.as_tensor(packed):
        kept = image[image[:, 0] != PADDING]
        label, value = kept[:, 0].long(), kept[:, 1]
        rows.append({"labels": label, "scores": value, "iscrowd": value == 1, "boxes": kept[:, 2:]})
    return rows
