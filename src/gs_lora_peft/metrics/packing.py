"""Ragged boxes as one tensor, so that a batch of images can be gathered over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

PADDING = -100.0  # what `transformers.Trainer` fills tensors of several lengths up with


def pack_boxes(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """One tensor of all boxes of a batch.

    `transformers.Trainer` and accelerate gather tensors over processes and batches, filling them up with -100 along
    the second dimension; lists of images with their own numbers of boxes they cannot gather.

    Args:
        rows (`Sequence[Mapping[str, torch.Tensor]]`): For each image `boxes` of shape `(n, 4)`, `labels` of shape
            `(n,)` and `scores` of shape `(n,)` of predictions, or `iscrowd` of shape `(n,)` of references.

    Returns:
        `torch.Tensor` of shape `(images, most boxes, 6)`, float64 (float32 on devices without it): label, score or
        whether it is a crowd (0 where there is neither), and box; filled up with -100. One row of -100 at least, for
        an empty dimension is not gathered.

    Raises:
        ValueError: there is no image.

    Example:

    ```python
    >>> found = processor.post_process_object_detection(outputs, threshold=0.0)
    >>> everywhere = unpack_boxes(accelerator.gather_for_metrics(accelerator.pad_across_processes(
    ...     pack_boxes(found), dim=1, pad_index=-100)))
    ```
    """
    if len(rows) == 0:
        raise ValueError("there is no image to pack; expected one at least. Leave empty batches out.")
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
    """What [`pack_boxes`] packed, however often it was filled up since.

    Args:
        packed (tensor or array of shape `(images, n, 6)`): as [`pack_boxes`] gives it.

    Returns:
        `list[dict[str, torch.Tensor]]`: `boxes` (float64), `labels` (int64), `scores` (float64) and `iscrowd` (bool)
        for each image, as [`detection_scores`] wants them: it reads the scores of predictions and the crowds of
        references.
    """
    rows = []
    for image in torch.as_tensor(packed):
        kept = image[image[:, 0] != PADDING]
        label, value = kept[:, 0].long(), kept[:, 1]
        rows.append({"labels": label, "scores": value, "iscrowd": value == 1, "boxes": kept[:, 2:]})
    return rows
