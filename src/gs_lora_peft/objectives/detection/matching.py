"""The predictions of a detector, matched with the annotations, and the losses of the matched pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ..losses import log_odds_against

Pairs = list[tuple[Tensor, Tensor]]

Target = dict[str, Tensor]

# Names of the classification heads in transformers.
_CLASS_HEADS = {"class_embed", "class_labels_classifier"}

_LABELS_MADE = "A detector's image processor makes them: processor(images=…, annotations=…)['labels']."


@dataclass
class Targets:
    """The annotations of a batch of images.

    Attributes:
        annotations (list of `dict`):
            `class_labels` and `boxes` of each image, all of its annotations.
        forget (list of `torch.Tensor`):
            Whether each annotation is to be forgotten: bool, on the CPU, where pairs are split.
    """

    annotations: list[Target]
    forget: list[Tensor]

    def __getitem__(self, images: slice) -> Targets:
        return Targets(self.annotations[images], self.forget[images])

    def rows(self, forget: bool) -> list[Tensor]:
        """The indices of the annotations to forget in each image, or of those to keep."""
        return [(mask == forget).nonzero().squeeze(1) for mask in self.forget]

    def pick(self, rows: Sequence[Tensor]) -> list[Target]:
        """The annotations of each image with the given indices."""
        return [
            {name: values[index.to(values.device)] for name, values in target.items()}
            for target, index in zip(self.annotations, rows, strict=True)
        ]


def read_targets(inputs: dict[str, Any], num_labels: int, training: bool) -> Targets:
    """Reads the annotations of a batch, and checks what would otherwise fail later, far from its cause.

    Args:
        inputs (`dict`):
            A batch with `pixel_values` of N images and `labels`, a list of N `dict` as the image processors of
            detectors return them: `class_labels`, int64, shape `(n,)`, and `boxes`, shape `(n, 4)`. In training also
            `forget`, bool, shape `(n,)`. Other keys are not read.
        num_labels (`int`):
            Number of categories of the head.
        training (`bool`):
            Whether the batch is a joint batch of two halves. Otherwise all annotations count as annotations to keep.

    Returns:
        [`Targets`]: The annotations.

    Raises:
        InvalidInputError: If the labels are missing or malformed, or contain a category that the head does not have.
    """
    labels, images = inputs.get("labels"), len(inputs.get("pixel_values", ()))
    if not isinstance(labels, Sequence) or not all(isinstance(label, Mapping) for label in labels):
        raise InvalidInputError("labels", type(labels).__name__, "a list of one dict for each image", _LABELS_MADE)
    if len(labels) != images or (training and images % 2):
        raise InvalidInputError(
            "a joint batch" if training else "a batch",
            f"{images} images and labels for {len(labels)}",
            "labels for each image" + (", and as many images to keep as to forget" if training else ""),
            "The collator must neither drop nor add images.",
        )
    names = ("class_labels", "boxes", "forget") if training else ("class_labels", "boxes")
    for position, label in enumerate(labels):
        _check_label(label, names, position)
    ids = torch.cat([label["class_labels"] for label in labels])
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= num_labels):
        raise InvalidInputError(
            "class_labels",
            f"{int(ids.min())} to {int(ids.max())}",
            f"ids in [0, {num_labels}), because the head has {num_labels} categories",
            "Renumber the categories, or build the model with `num_labels` to fit.",
        )
    sizes = [len(label["class_labels"]) for label in labels]
    flat = torch.cat([label["forget"] for label in labels]).cpu() if training else torch.zeros(sum(sizes)).bool()
    annotations = [{"class_labels": label["class_labels"], "boxes": label["boxes"].float()} for label in labels]
    return Targets(annotations, list(flat.split(sizes)))


def _check_label(label: Mapping[str, Tensor], names: Sequence[str], position: int) -> None:
    missing = [name for name in names if name not in label]
    if missing:
        mask = "It is a mask over the annotations: torch.isin(class_labels, ids of the categories to forget)."
        raise InvalidInputError(
            f"the labels of image {position} of the batch",
            sorted(label),
            f"{missing[0]!r} among them",
            mask if missing[0] == "forget" else _LABELS_MADE,
        )
    count = len(label["class_labels"])
    shapes = {"class_labels": (count,), "boxes": (count, 4), "forget": (count,)}
    for name in names:
        if tuple(label[name].shape) != shapes[name]:
            raise InvalidInputError(
                f"the shape of {name} of image {position} of the batch",
                tuple(label[name].shape),
                f"{shapes[name]}",
                "Boxes are (cx, cy, w, h) relative to the image, one for each class id.",
            )
    if "forget" in names and label["forget"].dtype != torch.bool:
        found = label["forget"].dtype
        raise InvalidInputError(f"the dtype of forget of image {position} of the batch", found, "torch.bool")


@dataclass
class Matched:
    """The queries that a loss is taken over, of several images in one flat list, and their matched annotations.

    Attributes:
        logits (`torch.Tensor`):
            float32, shape `(Q, C)`.
        boxes (`torch.Tensor`):
            float32, shape `(Q, 4)`: (cx, cy, w, h), relative to the image.
        queries (`torch.Tensor`):
            int64, shape `(M,)`: indices of the matched queries among the Q queries; the others are background.
        sources (`torch.Tensor`):
            int64, shape `(M,)`: indices of the same queries among all queries of these images.
        class_labels (`torch.Tensor`):
            int64, shape `(M,)`: categories of the matched annotations.
        target_boxes (`torch.Tensor`):
            float32, shape `(M, 4)`: boxes of the matched annotations.
        num_boxes (`int`):
            Number of annotations of these images; more than M if an image has more objects than queries.
    """

    logits: Tensor
    boxes: Tensor
    queries: Tensor
    sources: Tensor
    class_labels: Tensor
    target_boxes: Tensor
    num_boxes: int


def select(logits: Tensor, boxes: Tensor, pairs: Pairs, targets: Targets, forget: bool) -> Matched:
    """Selects what the loss of one half is taken over.

    Queries that match annotations of the other kind take no part, neither as an object nor as background. Images
    without annotations to forget take no part in the half to forget. All their queries would be background, and a
    bounded loss on background rewards false positives.

    Args:
        logits (`torch.Tensor`):
            Shape `(B, Q, C)`, of the half.
        boxes (`torch.Tensor`):
            Shape `(B, Q, 4)`.
        pairs (list of B pairs of `torch.Tensor`):
            Indices of the matched queries, and of their annotations.
        targets ([`Targets`]):
            The annotations of the same images.
        forget (`bool`):
            Whether this is the half to forget.

    Returns:
        [`Matched`]: The queries and their annotations.
    """
    used = torch.ones(logits.shape[:2], dtype=torch.bool)
    queries, annotations = [], []
    for image, (query, annotation) in enumerate(pairs):
        mine = targets.forget[image][annotation] == forget
        used[image, query[~mine]] = False
        queries.append(query[mine] + image * logits.shape[1])
        annotations.append(annotation[mine])
    num_boxes = [int((mask == forget).sum()) for mask in targets.forget]
    if forget:
        used[torch.tensor(num_boxes) == 0] = False
    used = used.flatten()
    kept = used.nonzero().squeeze(1).to(logits.device)
    new_number = used.cumsum(0) - 1
    sources = torch.cat(queries)
    picked = targets.pick(annotations)
    return Matched(
        logits=logits.flatten(0, 1)[kept],
        boxes=boxes.flatten(0, 1)[kept],
        queries=new_number[sources].to(logits.device),
        sources=sources.to(logits.device),
        class_labels=torch.cat([target["class_labels"] for target in picked]),
        target_boxes=torch.cat([target["boxes"] for target in picked]),
        num_boxes=sum(num_boxes),
    )


class DetectionCriterion:
    """The detector's `loss_function` on its last layer, in two steps: match, then sum the loss terms.

    transformers' loss functions do both in one call. They divide by the number of boxes of one process (RT-DETR,
    D-FINE), or by a mean over processes that is too small by a factor of their number (all others). Here the caller
    chooses the pairs, and divides by a normaliser that has the same meaning with one process and with many. With one
    process the result equals that of `loss_function` with `config.auxiliary_loss=False`.

    Args:
        model (`transformers.PreTrainedModel`):
            The bare detector.

    Raises:
        InvalidInputError: If the loss function is not that of DETR, Conditional, Deformable or DAB-DETR, RT-DETR,
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
                "For another one, pass your own `objective` to GSLoraTrainer.",
            )
        config: Any = model.config
        self.criterion, (self.class_weight, self.l1_weight, self.giou_weight) = build(config)
        self.class_term, self.box_term = self.criterion.losses[:2]
        # D-FINE's boxes may leave the image; its loss does not count the part outside.
        self.clamps_boxes = isinstance(self.criterion, DFineLoss)
        self.is_softmax = type(self.criterion) is ImageLoss
        # For an image, as in the model's image processors; `None` for one detection per query.
        self.max_detections = 100 if isinstance(self.criterion, DeformableDetrImageLoss) else None

    def prepare(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Casts the outputs of a forward to float32, because bf16 has too few bits for the loss, and to its range.

        NaN and infinity become finite numbers, so that matching does not fail. The caller must check for them.
        """
        self.criterion.to(logits.device)
        boxes = boxes.float().nan_to_num(0.0, 1.0, 0.0)
        return logits.float().nan_to_num(0.0), boxes.clamp(0, 1) if self.clamps_boxes else boxes

    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]]) -> Pairs:
        """Runs the detector's own bipartite matching.

        Args:
            logits (`torch.Tensor`):
                Shape `(B, Q, C)`.
            boxes (`torch.Tensor`):
                Shape `(B, Q, 4)`.
            targets (list of B `dict`):
                `class_labels` and `boxes` of each image.

        Returns:
            list of B pairs of `torch.Tensor`: Indices of the matched queries, and of their annotations, int64, on the
            CPU.
        """
        return self.criterion.matcher({"logits": logits, "pred_boxes": boxes}, targets)

    def class_sum(self, matched: Matched) -> Tensor:
        """The detector's class loss (`loss_ce` or `loss_vfl`) times [`~DetectionCriterion.class_normaliser`]."""
        if not len(matched.logits):
            return matched.logits.sum()
        loss = self._terms(self.class_term, matched)[0]
        # Softmax cross-entropy is a weighted mean over queries, focal losses are sums.
        return loss * self.class_normaliser(matched) if self.is_softmax else loss

    def box_sum(self, matched: Matched) -> Tensor:
        """The sum of L1 and GIoU of the matched pairs, with the detector's weights; not divided by the boxes."""
        l1, giou = self._terms(self.box_term, matched)
        return self.l1_weight * l1 + self.giou_weight * giou

    def class_normaliser(self, matched: Matched) -> float:
        """The divisor of [`~DetectionCriterion.class_sum`].

        With a softmax head this is the sum of the queries' weights (`eos_coefficient` for background), else the number
        of boxes.
        """
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
        # All queries as one image, with one box as the divisor: each term then is a sum over pairs or queries.
        outputs = {"logits": matched.logits[None], "pred_boxes": matched.boxes[None]}
        target = {"class_labels": matched.class_labels, "boxes": matched.target_boxes}
        pairs = [(matched.queries, torch.arange(len(matched.queries), device=matched.queries.device))]
        return list(self.criterion.get_loss(name, outputs, [target], pairs, 1.0).values())


# A criterion of transformers, and the weights of its class, L1 and GIoU terms.
Criterion = tuple[Any, tuple[float, float, float]]


def _softmax(config: Any) -> Criterion:
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = ImageLoss(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"])
    return criterion, (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)


def _focal(config: Any) -> Criterion:
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"])
    return criterion, (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)


def _varifocal(kind: type[RTDetrLoss]) -> Callable[[Any], Criterion]:
    return lambda config: (
        kind(config),
        (config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou),
    )


_CRITERIA: dict[Any, Callable[[Any], Criterion]] = {
    ForObjectDetectionLoss: _softmax,
    DeformableDetrForObjectDetectionLoss: _focal,
    RTDetrForObjectDetectionLoss: _varifocal(RTDetrLoss),
    DFineForObjectDetectionLoss: _varifocal(DFineLoss),
}


class HeadRecorder:
    """Records the input of the last Linear of a detector's classification head in a forward.

    Args:
        model (`torch.nn.Module`):
            The bare detector.

    Raises:
        InvalidInputError: If the detector does not have a classification head of a known name.
    """

    def __init__(self, model: nn.Module):
        self.linears = [
            module
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and _CLASS_HEADS & set(path.split(".")) and "lora_" not in path
        ]
        if not self.linears:
            expected = f"one with a classification head, {' or '.join(sorted(_CLASS_HEADS))}, for prototypes"
            raise InvalidInputError("model", type(model).__name__, expected, "Set the prototype weights to 0.")

    @contextmanager
    def recording(self) -> Iterator[dict[str, Any]]:
        """Records while a forward runs in the block.

        Each decoder layer calls the head, or has its own head. The last call counts, as for the model's logits.

        Yields:
            `dict`: After the forward, `embeddings`, shape `(B, Q, D)`, and `weight`, the head's rows, shape `(C, D)`.
        """
        seen: dict[str, Any] = {}

        def record(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
            seen.update(embeddings=inputs[0], weight=module.weight)

        handles = [linear.register_forward_pre_hook(record) for linear in self.linears]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
