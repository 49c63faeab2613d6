"""A detector's own matcher and loss terms, with the choice of pairs and the normalisation left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss
from transformers.loss.loss_deformable_detr import (
    DeformableDetrForObjectDetectionLoss,
    DeformableDetrHungarianMatcher,
    DeformableDetrImageLoss,
)
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher, ImageLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss, RTDetrLoss

from ...errors import InvalidInputError
from ..classification import log_odds_against

Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class Matched:
    """
    The queries of some images that a loss is taken over, as one flat list, and the annotations they are matched to.

    Attributes:
        logits (`torch.Tensor`): float32, shape `(Q, C)`.
        boxes (`torch.Tensor`): float32, shape `(Q, 4)`: (cx, cy, w, h), relative to the image.
        queries (`torch.Tensor`): int64, shape `(M,)`: which of the Q queries are matched; all others are background.
        sources (`torch.Tensor`): int64, shape `(M,)`: the same queries among all queries of these images.
        class_labels (`torch.Tensor`): int64, shape `(M,)`: the categories of the matched annotations.
        target_boxes (`torch.Tensor`): float32, shape `(M, 4)`.
        num_boxes (`int`): annotations of these images; more than M where an image has more objects than queries.
    """

    logits: Tensor
    boxes: Tensor
    queries: Tensor
    sources: Tensor
    class_labels: Tensor
    target_boxes: Tensor
    num_boxes: int


class DetectionCriterion:
    """
    What the detector's `loss_function` does on its last layer, in two steps: match, then sum the loss terms.

    transformers' loss functions do both in one call, and divide by the number of boxes of one process (RT-DETR,
    D-FINE), or by a mean over processes that is too small by their number (all others). Here the caller chooses the
    pairs, and divides by a normaliser that has the same meaning on one process and on many. On one process the
    result equals that of `loss_function` with `config.auxiliary_loss=False`.

    Args:
        model (`transformers.PreTrainedModel`): the bare detector.

    Raises:
        InvalidInputError: if its loss function is not that of DETR, Conditional, Deformable or DAB-DETR, RT-DETR,
            RT-DETRv2, D-FINE or YOLOS.
    """

    def __init__(self, model: nn.Module):
        build = _CRITERIA.get(getattr(model, "loss_function", None))
        if build is None:
            name = getattr(getattr(model, "loss_function", None), "__name__", None)
            known = sorted(function.__name__ for function in _CRITERIA)
            raise InvalidInputError(
                f"the loss function of {type(model).__name__}",
                name,
                f"one of {known}, which can be split into a retain and a forget loss",
                "For any other, give `GSLoraTrainer` an `objective` of your own.",
            )
        config: Any = model.config
        self.criterion, (self.class_weight, self.l1_weight, self.giou_weight) = build(config)
        self.class_term, self.box_term = self.criterion.losses[:2]
        # D-FINE's boxes may leave the image, which its loss does not count.
        self.clamps_boxes = isinstance(self.criterion, DFineLoss)
        self.is_softmax = type(self.criterion) is ImageLoss
        # Of an image, as the image processors of the model count them; `None`: as many as there are queries.
        self.most_detections = 100 if isinstance(self.criterion, DeformableDetrImageLoss) else None

    def prepare(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of a forward in float32 and within the range that the loss takes: bf16 has too few bits for it.

        NaN and infinity become numbers, so that matching does not fail on them; who calls has to look for them.
        """
        self.criterion.to(logits.device)
        boxes = boxes.float().nan_to_num(0.0, 1.0, 0.0)
        return logits.float().nan_to_num(0.0), boxes.clamp(0, 1) if self.clamps_boxes else boxes

    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]]) -> Pairs:
        """The detector's own bipartite matching.

        Args:
            logits (`torch.Tensor`): shape `(B, Q, C)`.
            boxes (`torch.Tensor`): shape `(B, Q, 4)`.
            targets (list of B `dict`): `class_labels` and `boxes` of each image.

        Returns:
            list of B pairs of int64 tensors on the CPU: matched queries, and the annotations they are matched to.
        """
        return self.criterion.matcher({"logits": logits, "pred_boxes": boxes}, targets)

    def class_sum(self, matched: Matched) -> Tensor:
        """The sum that, divided by [`class_normaliser`], is the detector's class loss (`loss_ce` or `loss_vfl`)."""
        if not len(matched.logits):
            return matched.logits.sum()
        loss = self._terms(self.class_term, matched)[0]
        # Softmax cross-entropy comes as a weighted mean over queries, focal losses as a sum.
        return loss * self.class_normaliser(matched) if self.is_softmax else loss

    def box_sum(self, matched: Matched) -> Tensor:
        """L1 and GIoU of the matched pairs, weighted as the detector weights them, to be divided by the boxes."""
        l1, giou = self._terms(self.box_term, matched)
        return self.l1_weight * l1 + self.giou_weight * giou

    def class_normaliser(self, matched: Matched) -> float:
        """The weights of the queries with a softmax head (background counts `eos_coefficient`), else the boxes."""
        if not self.is_softmax:
            return float(matched.num_boxes)
        objects = len(matched.queries)
        return objects + self.criterion.eos_coef * (len(matched.logits) - objects)

    def log_odds(self, matched: Matched) -> Tensor:
        """log((1 − p) / p) of the category at each matched query, shape `(M,)`."""
        logits = matched.logits[matched.queries]
        if self.is_softmax:
            return log_odds_against(logits, matched.class_labels)
        return -logits.gather(1, matched.class_labels[:, None]).squeeze(1)

    def _terms(self, name: str, matched: Matched) -> list[Tensor]:
        # As one image with all queries and one box: every term is then a sum over pairs or queries.
        outputs = {"logits": matched.logits[None], "pred_boxes": matched.boxes[None]}
        target = {"class_labels": matched.class_labels, "boxes": matched.target_boxes}
        pairs = [(matched.queries, torch.arange(len(matched.queries), device=matched.queries.device))]
        return list(self.criterion.get_loss(name, outputs, [target], pairs, 1.0).values())


Built = tuple[Any, tuple[float, float, float]]


def _softmax(config: Any) -> Built:
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = ImageLoss(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"])
    return criterion, (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)


def _focal(config: Any) -> Built:
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"])
    return criterion, (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)


def _varifocal(kind: type[RTDetrLoss]) -> Callable[[Any], Built]:
    return lambda config: (
        kind(config),
        (config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou),
    )


_CRITERIA: dict[Any, Callable[[Any], Built]] = {
    ForObjectDetectionLoss: _softmax,
    DeformableDetrForObjectDetectionLoss: _focal,
    RTDetrForObjectDetectionLoss: _varifocal(RTDetrLoss),
    DFineForObjectDetectionLoss: _varifocal(DFineLoss),
}
