"""The annotations of a joint batch, and which of them a half is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError
from .criterion import Matched, Pairs

Target = dict[str, Tensor]
_MADE = "A detector's image processor makes them: processor(images=…, annotations=…)['labels']."


@dataclass
class Targets:
    """
    The annotations of a batch of images.

    Attributes:
        annotations (list of `dict`): `class_labels` and `boxes` of each image, all of its annotations.
        forget (list of `torch.Tensor`): bool, on the CPU, where pairs are split: which of them are to be forgotten.
    """

    annotations: list[Target]
    forget: list[Tensor]

    def __getitem__(self, images: slice) -> Targets:
        return Targets(self.annotations[images], self.forget[images])

    def rows(self, forget: bool) -> list[Tensor]:
        """Of each image the numbers of the annotations to forget, or of those to keep."""
        return [(mask == forget).nonzero().squeeze(1) for mask in self.forget]

    def pick(self, rows: Sequence[Tensor]) -> list[Target]:
        """Of each image the annotations with the given numbers."""
        return [
            {name: values[index.to(values.device)] for name, values in target.items()}
            for target, index in zip(self.annotations, rows, strict=True)
        ]


def read_targets(inputs: dict[str, Any], num_labels: int, training: bool) -> Targets:
    """
    The annotations of a batch, checked for what would otherwise fail far from its cause.

    Args:
        inputs (`dict`): a batch with `pixel_values` of N images and `labels`, a list of N `dict` as the image
            processors of detectors return them: `class_labels`, int64, shape `(n,)`, and `boxes`, shape `(n, 4)`. In
            training also `forget`, bool, shape `(n,)`. Other keys are not read.
        num_labels (`int`): categories of the head.
        training (`bool`): whether the batch is a joint one of two halves; else everything counts as to keep.

    Raises:
        InvalidInputError: if the labels are missing, of another form, or name a category that the head does not have.
    """
    labels, images = inputs.get("labels"), len(inputs.get("pixel_values", ()))
    if not isinstance(labels, Sequence) or not all(isinstance(label, Mapping) for label in labels):
        raise InvalidInputError("labels", type(labels).__name__, "a list of one dict for each image", _MADE)
    if len(labels) != images or (training and images % 2):
        raise InvalidInputError(
            "a joint batch" if training else "a batch",
            f"{images} images and labels for {len(labels)}",
            "labels for each image" + (", and as many images to keep as to forget" if training else ""),
            "The collator must neither drop nor add any.",
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
            mask if missing[0] == "forget" else _MADE,
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


def select(logits: Tensor, boxes: Tensor, pairs: Pairs, targets: Targets, forget: bool) -> Matched:
    """
    What the loss of one half is taken over.

    Queries that are matched to annotations of the other kind take no part, neither as an object nor as background.
    Images without anything to forget take no part in the half to forget: all their queries would be background, on
    which a bounded loss would ask for false positives.

    Args:
        logits (`torch.Tensor`): shape `(B, Q, C)`, of the half.
        boxes (`torch.Tensor`): shape `(B, Q, 4)`.
        pairs (list of B pairs of tensors): queries, and numbers of the annotations they are matched to.
        targets ([`Targets`]): of the same images.
        forget (`bool`): whether this is the half to forget.
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
