"""What "retain" and "forget" mean for a detector: its own loss, and its bounded opposite."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...checking import NotNegative, checked
from ...compat import bare
from ...errors import InvalidInputError
from ..base import Kind, LossArguments, Objective, ObjectiveOutput, Task
from ..heads import is_detector
from ..losses import ForgetLoss, GlobalMean, PrototypeDistance, embedding_distances, hinge, identity
from ..terms import ClassPrototypes, no_distillation
from .depth import PROPOSALS, with_query_depth
from .matching import DetectionCriterion, HeadRecorder, Matched, Pairs, Targets, read_targets, select
from .scoring import DetectionScoring

Background = Literal["matched", "others"]


@dataclass
class _Half:
    """Class and box loss of one half: this process's sums divided by the mean normalisers of all processes."""

    matched: Matched
    class_loss: Tensor
    box_loss: Tensor
    log_odds: Tensor
    boxes: Tensor  # mean number of annotations over the processes, at least 1


class DetectionObjective(Objective):
    r"""The loss of a detector: L_retain + β · (a bounded forgetting term + the box losses of the forget half).

    L_retain is the detector's own loss (class, L1 and GIoU of the last layer, with the weights of its configuration)
    on the half to keep, with the annotations to keep. On the half to forget the detector still learns the boxes, but
    not their category. The forgetting term is one of

    - `"cross_entropy"`: ReLU(BND − `forget_class_weight` · L_class), as published (GS-LoRA, https://arxiv.org/abs/2403.11530),
      with L_class the detector's class loss, softmax, focal or varifocal, background included.
    - `"log_odds"`: the mean over the annotations to forget of ReLU(BND − log((1 − p) / p)), p the probability of the
      category at the matched query. Each object is pushed until it is forgotten and no further. The background takes
      no part: a bounded class loss on background rewards false positives.

    Auxiliary losses of earlier layers do not count, as published. The forward does not get the labels, so that RT-DETR
    and D-FINE do not draw denoising queries.

    An image may hold both kinds of annotations and be in both halves. With `background="others"` the annotations of
    the other kind count as background, as published. With `background="matched"` an image is matched once with all of
    its annotations, and the queries that match the other kind take no part in the loss.

    Prototypes (GS-LoRA++, https://arxiv.org/abs/2501.09705) add w_f · ReLU(BND_pro − D_f) + w_r · D_r. D is the
    distance of a matched query's decoder embedding from its category's row of the classification head, averaged over
    the annotations of a half.

    Every sum is divided by the mean of its normaliser over all processes, so that two processes give the gradient of
    their joint batch. The normaliser is the number of boxes, or the weights of the queries with a softmax head.

    Args:
        model (`torch.nn.Module`):
            The detector, bare or in a `PeftModel`: DETR, Conditional, Deformable or DAB-DETR, RT-DETR, RT-DETRv2,
            D-FINE or YOLOS of transformers.
        forget_weight (`float`):
            β.
        forget_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND in nats; `"auto"` is 15, as published.
        kind (`"cross_entropy"` or `"log_odds"`, *optional*, defaults to `"cross_entropy"`):
            The forgetting term.
        background (`"matched"` or `"others"`, *optional*, defaults to `"matched"`):
            Whether queries on objects of the other kind take no part, or count as background.
        forget_class_weight (`float`, *optional*, defaults to 2.0):
            Factor of the class loss under the bound, as published.
        prototype_forget_weight (`float`, *optional*, defaults to 0.0):
            w_f.
        prototype_retain_weight (`float`, *optional*, defaults to 0.0):
            w_r.
        prototype_bound (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            BND_pro; 18 in the paper. `"auto"` is the mean distance between the rows of two different categories.
        prototype_distance (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            See [`embedding_distances`]; `"kl"` in the paper.
        learn_forgotten_boxes (`bool`, *optional*, defaults to `True`):
            Whether the detector still learns the boxes of the objects to forget, as published.

    Raises:
        InvalidInputError: If the detector's loss function is not known; if an argument is outside its range; or if a
            prototype weight is not 0 and the model does not have a classification head of a known name.

    Example:
        ```py
        >>> objective = DetectionObjective(model, forget_weight=0.03)
        >>> labels = processor(images=images, annotations=annotations)["labels"]
        >>> for label in labels:
        ...     label["forget"] = torch.isin(label["class_labels"], categories_to_forget)
        >>> objective.training_step(model, {"pixel_values": pixel_values, "labels": labels}).loss.backward()
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        forget_weight: float,
        forget_bound: float | str = "auto",
        kind: ForgetLoss = "cross_entropy",
        *,
        background: Background = "matched",
        forget_class_weight: float = 2.0,
        prototype_forget_weight: float = 0.0,
        prototype_retain_weight: float = 0.0,
        prototype_bound: float | str = "auto",
        prototype_distance: PrototypeDistance = "kl",
        learn_forgotten_boxes: bool = True,
    ):
        for name, value, allowed in (
            ("kind", kind, ForgetLoss),
            ("background", background, Background),
            ("prototype_distance", prototype_distance, PrototypeDistance),
        ):
            checked(name, value, allowed)
        numbers = {
            "forget_weight": forget_weight,
            "forget_class_weight": forget_class_weight,
            "prototype_forget_weight": prototype_forget_weight,
            "prototype_retain_weight": prototype_retain_weight,
            "prototype_bound": 0.0 if prototype_bound == "auto" else prototype_bound,
            "forget_bound": 15.0 if forget_bound == "auto" else forget_bound,
        }
        for name, number in numbers.items():
            checked(name, number, NotNegative)
        self.forget_weight = forget_weight
        self.forget_bound = float(numbers["forget_bound"])
        self.kind = kind
        self.background = background
        self.learn_forgotten_boxes = learn_forgotten_boxes
        self.forget_class_weight = forget_class_weight
        self.prototype_forget_weight = prototype_forget_weight
        self.prototype_retain_weight = prototype_retain_weight
        self.prototype_distance: PrototypeDistance = prototype_distance
        detector = bare(model)
        self.num_labels = detector.config.num_labels
        self.criterion = DetectionCriterion(detector)
        self.scoring = DetectionScoring(self.criterion.is_softmax, self.criterion.max_detections)
        self.recorder = HeadRecorder(detector) if prototype_forget_weight or prototype_retain_weight else None
        # The automatic bound depends on the head's rows, which the first forward records.
        self._bound = None if prototype_bound == "auto" else float(prototype_bound)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        """One joint forward and its losses.

        Args:
            model (`torch.nn.Module`):
                The model that the trainer calls.
            inputs (`dict`):
                `pixel_values` of 2·B images, B to keep, then B to forget; further arguments of the model's forward
                (`pixel_mask`); and `labels`, a dict for each image with all its annotations of both kinds:
                `class_labels`, int64, `(n,)`; `boxes`, (cx, cy, w, h) relative to the image, `(n, 4)`; `forget`, bool,
                `(n,)`, whether the category is to be forgotten.
            global_mean (`Callable`, *optional*):
                Averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`]: The loss. `forget_loss` is L_class of the half to forget. The metrics are
            `retain_class_loss`, `retain_box_loss`, `forget_box_loss`, and `retain_confidence` and `forget_confidence`,
            the mean probability of the right category at the matched queries; with prototypes also `retain_distance`
            and `forget_distance`.

        Raises:
            InvalidInputError: Before the forward, if the labels are missing or malformed or contain a category that
                the head does not have, or if the batch does not have two equal halves.
        """
        targets = read_targets(inputs, self.num_labels, training=True)
        logits, boxes, seen = self._forward(model, inputs)
        with torch.autocast(logits.device.type, enabled=False):
            output = self._losses(logits, boxes, seen, targets, global_mean)
        output.outputs = {"logits": logits, "pred_boxes": boxes}
        if PROPOSALS in seen:
            output.outputs[PROPOSALS] = seen[PROPOSALS]
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The detector's loss over all annotations, and its `logits` `(B, Q, C)` and `pred_boxes` `(B, Q, 4)`."""
        targets = read_targets(inputs, self.num_labels, training=False)
        logits, boxes, _ = self._forward(model, inputs)
        with torch.autocast(logits.device.type, enabled=False):
            clean = self.criterion.prepare(logits, boxes)
            pairs = self.criterion.match(*clean, targets.annotations)
            (half,) = self._halves([select(*clean, pairs, targets, forget=False)], identity)
        loss = self.criterion.class_weight * half.class_loss + half.box_loss + _poison(logits, boxes)
        return loss, {"logits": logits, "pred_boxes": boxes}

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        with ExitStack() as stack:
            seen = stack.enter_context(self.recorder.recording()) if self.recorder else {}
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        if outputs.get("enc_topk_bboxes") is not None:
            seen[PROPOSALS] = outputs["enc_topk_bboxes"]
        return outputs["logits"], outputs["pred_boxes"], seen

    def _match(self, logits: Tensor, boxes: Tensor, targets: Targets, half: int) -> Pairs:
        if self.background == "matched":
            return self.criterion.match(logits, boxes, targets.annotations)
        rows = targets[:half].rows(forget=False) + targets[half:].rows(forget=True)
        pairs = self.criterion.match(logits, boxes, targets.pick(rows))
        return [(query, row[annotation]) for (query, annotation), row in zip(pairs, rows, strict=True)]

    def _losses(
        self, logits: Tensor, boxes: Tensor, seen: dict[str, Any], targets: Targets, global_mean: GlobalMean
    ) -> ObjectiveOutput:
        half = len(logits) // 2
        keep, gone = slice(None, half), slice(half, None)
        clean_logits, clean_boxes = self.criterion.prepare(logits, boxes)
        pairs = self._match(clean_logits, clean_boxes, targets, half)
        retain, forget = self._halves(
            [
                select(clean_logits[part], clean_boxes[part], pairs[part], targets[part], forget=part is gone)
                for part in (keep, gone)
            ],
            global_mean,
        )
        retain_loss = (
            self.criterion.class_weight * retain.class_loss + retain.box_loss + _poison(logits[keep], boxes[keep])
        )
        poison = _poison(logits[gone], boxes[gone])
        class_loss = forget.class_loss + poison
        distances = self._distances(seen, (retain, keep), (forget, gone)) if self.recorder else []
        means = global_mean(torch.stack([x.detach() for x in (retain_loss, class_loss, *distances)]))
        forgetting = self._forgetting(forget, class_loss, means[1])
        boxes_loss = forget.box_loss if self.learn_forgotten_boxes else 0.0
        loss = retain_loss + self.forget_weight * (forgetting + boxes_loss + poison)
        metrics = {
            "retain_class_loss": retain.class_loss,
            "retain_box_loss": retain.box_loss,
            "forget_box_loss": forget.box_loss,
            "retain_confidence": _confidence(retain),
            "forget_confidence": _confidence(forget),
        }
        if self.recorder:
            loss = loss + self.prototype_retain_weight * distances[0]
            loss = loss + self.prototype_forget_weight * hinge(distances[1], self._bound or 0.0, means[3])
            metrics.update(retain_distance=distances[0], forget_distance=distances[1])
        return ObjectiveOutput(
            loss=loss,
            retain_loss=means[0],
            forget_loss=means[1],
            metrics={name: value.detach() for name, value in metrics.items()},
        )

    def _halves(self, parts: list[Matched], global_mean: GlobalMean) -> list[_Half]:
        """Losses of each half. One call averages all normalisers over the processes."""
        numbers = [(self.criterion.class_normaliser(part), float(part.num_boxes)) for part in parts]
        means = global_mean(torch.tensor(numbers, device=parts[0].logits.device))
        # As in transformers: without objects, focal losses and box losses are divided by 1.
        boxes = means[:, 1].clamp(min=1)
        weights = torch.where(means[:, 0] > 0, means[:, 0], 1) if self.criterion.is_softmax else boxes
        return [
            _Half(
                matched=part,
                class_loss=self.criterion.class_sum(part) / weights[position],
                box_loss=self.criterion.box_sum(part) / boxes[position],
                log_odds=self.criterion.log_odds(part),
                boxes=boxes[position],
            )
            for position, part in enumerate(parts)
        ]

    def _forgetting(self, forget: _Half, class_loss: Tensor, mean_class_loss: Tensor) -> Tensor:
        if self.kind == "log_odds":
            return (self.forget_bound - forget.log_odds).relu().sum() / forget.boxes
        weight = self.forget_class_weight
        return hinge(weight * class_loss, self.forget_bound, weight * mean_class_loss)

    def _distances(self, seen: dict[str, Any], *halves: tuple[_Half, slice]) -> list[Tensor]:
        # The last row of a softmax head is the background.
        rows = seen["weight"].detach()[: self.num_labels].float()
        if self._bound is None:
            prototypes = ClassPrototypes(rows, torch.ones(len(rows), dtype=torch.int64, device=rows.device))
            self._bound = prototypes.mean_distance(self.prototype_distance).item()
        distances = []
        for half, images in halves:
            embeddings = seen["embeddings"][images].flatten(0, 1)[half.matched.sources].float()
            own_rows = rows[half.matched.class_labels]
            distances.append(embedding_distances(embeddings, own_rows, self.prototype_distance).sum() / half.boxes)
        return distances


def _confidence(half: _Half) -> Tensor:
    return (-half.log_odds.detach()).sigmoid().sum() / max(len(half.log_odds), 1)


def _poison(logits: Tensor, boxes: Tensor) -> Tensor:
    """0, or NaN if an output is not finite. Matching would fail on it; the trainer stops at a NaN loss."""
    return 0.0 * (logits.detach().float().sum() + boxes.detach().float().sum())


def _make(model: nn.Module, args: LossArguments, task: Task) -> Objective:
    if args.distillation_weight not in ("auto", 0):
        raise no_distillation(args.distillation_weight, "a detector does not give logits of a whole image")
    if args.prototype_augmentations:
        raise InvalidInputError(
            "prototype_augmentations",
            args.prototype_augmentations,
            "0, because the prototypes of a detector are the rows of its classification head instead of samples",
            "Leave it out.",
        )
    objective = DetectionObjective(
        model,
        args.forget_weight,
        args.forget_bound,
        args.forget_loss,
        background=args.background,
        prototype_forget_weight=args.prototype_forget_weight,
        prototype_retain_weight=args.prototype_retain_weight,
        prototype_bound=args.prototype_bound,
        prototype_distance=args.prototype_distance,
        learn_forgotten_boxes=not args.depth_weight,
    )
    return with_query_depth(objective, objective.criterion, model, args, task)


DETECTION = Kind(fits=is_detector, make=_make)
