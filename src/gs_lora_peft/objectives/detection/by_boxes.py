"""Queries matched with annotations by their boxes alone, whatever the class head answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .matching import DetectionCriterion, Matched, Pairs, Targets, select


def matched_by_boxes(
    criterion: DetectionCriterion,
    states: Tensor,
    boxes: Tensor,
    annotations: Sequence[Mapping[str, Tensor]],
    known: Sequence[Tensor],
) -> Matched:
    """Matches queries with annotations by the costs of their boxes, and keeps those that a new class head may learn.

    All annotations are matched, see [`match_by_boxes`]. Queries on annotations that are not known take no part,
    neither as an object nor as background.

    Args:
        criterion ([`DetectionCriterion`]):
            The detector's matching.
        states (`torch.Tensor`):
            What the class head reads, shape `(B, Q, width)`.
        boxes (`torch.Tensor`):
            (cx, cy, w, h) relative to the image, shape `(B, Q, 4)`.
        annotations (`Sequence[Mapping]`):
            `class_labels` and `boxes` of each image.
        known (`Sequence[torch.Tensor]`):
            Whether each annotation is known: bool, of each image.

    Returns:
        [`Matched`]: The queries and their annotations, with states in the place of logits: put the answers of a head
        there, and [`DetectionCriterion`] gives its loss.
    """
    states, boxes = criterion.prepare(states, boxes)
    targets = [{name: label[name] for name in ("class_labels", "boxes")} for label in annotations]
    pairs = match_by_boxes(criterion, boxes, targets)
    return select(states, boxes, pairs, Targets(targets, [~mask for mask in known]), forget=False)


def match_by_boxes(criterion: DetectionCriterion, boxes: Tensor, annotations: Sequence[Mapping[str, Tensor]]) -> Pairs:
    """Matches queries with annotations by the costs of their boxes.

    A detector's own matching also looks at the answers, which a model that forgot withholds. Here all queries answer
    alike.

    Args:
        criterion ([`DetectionCriterion`]):
            The detector's matching.
        boxes (`torch.Tensor`):
            (cx, cy, w, h) relative to the image, shape `(B, Q, 4)`.
        annotations (`Sequence[Mapping]`):
            `class_labels` and `boxes` of each image.

    Returns:
        list of B pairs of `torch.Tensor`: As [`~DetectionCriterion.match`].
    """
    targets = [{"class_labels": label["class_labels"], "boxes": label["boxes"].float()} for label in annotations]
    categories = 1 + max((int(label["class_labels"].max()) for label in targets if len(label["boxes"])), default=0)
    answers = torch.zeros(*boxes.shape[:2], categories, device=boxes.device)
    return criterion.match(*criterion.prepare(answers, boxes), targets)
