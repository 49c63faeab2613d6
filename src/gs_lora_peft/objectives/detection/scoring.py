"""Average precision of a detector, gathered over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...metrics import AVERAGE_PRECISION, detection_scores, pack_boxes, unpack_boxes
from ...roles import ClassRoles
from ..base import Scoring


class DetectionScoring(Scoring):
    """COCO's AP@[.5:.95] of the categories by role, see [`detection_scores`].

    Args:
        is_softmax (`bool`):
            Whether the head has a background class, so that a query predicts one category. A query of a sigmoid head
            predicts every category.
        max_detections (`int`, *optional*):
            With a sigmoid head, the number of best detections of an image that count; by default one per query.
    """

    measure = AVERAGE_PRECISION

    def __init__(self, is_softmax: bool, max_detections: int | None = None):
        self.is_softmax = is_softmax
        self.max_detections = max_detections

    def gathered(self, outputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Detections and annotated objects as [`pack_boxes`] packs them, with boxes relative to the image."""
        logits, boxes = outputs[:2]
        return pack_boxes(self.detections(logits, boxes)), pack_boxes([_reference(label) for label in labels])

    def detections(self, logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        """The result of the image processors' `post_process_object_detection` with `threshold=0`, without sizes.

        Args:
            logits (`torch.Tensor`):
                Shape `(B, Q, C)`; with a softmax head `(B, Q, C + 1)`.
            boxes (`torch.Tensor`):
                (cx, cy, w, h), relative to the image, shape `(B, Q, 4)`.

        Returns:
            `list[dict[str, torch.Tensor]]`: `scores`, `labels` and `boxes` of each image. Boxes are corners relative
            to the image.
        """
        logits, corners = logits.float(), corners_of(boxes.float())
        if self.is_softmax:
            scores, categories = logits.softmax(-1)[..., :-1].max(-1)
        else:
            count = min(self.max_detections or logits.shape[1], logits[0].numel())
            scores, index = logits.sigmoid().flatten(1).topk(count, dim=1)
            categories, queries = index % logits.shape[2], index // logits.shape[2]
            corners = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        return [
            {"scores": score, "labels": category, "boxes": box}
            for score, category, box in zip(scores, categories, corners, strict=True)
        ]

    def by_role(
        self, answers: Any, labels: Any, roles: ClassRoles, forget_before: float | None = None
    ) -> dict[str, Any]:
        """As [`detection_scores`], without `per_class`."""
        found, truth, classes = unpack_boxes(answers), unpack_boxes(labels), roles.as_keywords()
        scores = detection_scores(found, truth, **classes, ap_forget_before=forget_before)
        return {name: value for name, value in scores.items() if name != "per_class"}

    def names(self) -> list[str]:
        return [name for name in detection_scores([], [], forget_classes=[]) if name != "per_class"]

    def by_class(self, answers: Any, labels: Any) -> dict[int, tuple[float, int]]:
        """AP of each category. All categories have the same weight, whatever their number of objects."""
        scores = detection_scores(unpack_boxes(answers), unpack_boxes(labels), forget_classes=[])
        return {category: (found["ap"], 1) for category, found in scores["per_class"].items()}


def _reference(label: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The objects of an image, followed by its crowds, which [`DetectionCollator`] keeps apart."""
    boxes, categories = label["boxes"], label["class_labels"]
    crowd_boxes = label.get("crowd_boxes", boxes[:0])
    crowd_labels = label.get("crowd_labels", categories[:0])
    return {
        "boxes": corners_of(torch.cat([boxes, crowd_boxes])),
        "labels": torch.cat([categories, crowd_labels]),
        "iscrowd": torch.arange(len(boxes) + len(crowd_boxes), device=boxes.device) >= len(boxes),
    }


def corners_of(boxes: Tensor) -> Tensor:
    """Turns (cx, cy, w, h) into (x0, y0, x1, y1); shape `(..., 4)`."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)
