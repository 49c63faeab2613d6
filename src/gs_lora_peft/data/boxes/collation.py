"""The collator for detectors: the model's image processor prepares images and boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch.nn import functional as F
from transformers.image_utils import get_image_size

from ...errors import InvalidInputError, PrivateInputError
from ..rows import cell_name, no_column, picture_for
from .annotations import InvalidBoxError
from .columns import BOX_KEYS, CATEGORY_KEYS

_ALIGN = "Align the categories with prepare_boxes(dataset, label2id=model.config.label2id)."

# Image processors (DAB-DETR uses Conditional DETR's) of models that read `pixel_mask` and predict boxes relative to
# the image without its padding. To other models (YOLOS, RT-DETR), padding is part of the image.
_MASKED_PROCESSORS = ("Detr", "ConditionalDetr", "DeformableDetr")


class DetectionCollator:
    """Collates rows with an image and annotated boxes into a batch for one of transformers' detectors.

    A row's boxes are (x, y, w, h) in pixels of its image after the dataset's transform. A transform must move the
    boxes with the image and remove those that leave it (albumentations does with `BboxParams("coco",
    label_fields=[...])`, torchvision with `SanitizeBoundingBoxes`). The image processor clips boxes that reach beyond
    the image, and leaves crowds (`iscrowd`) out of the objects.

    When images of several sizes are padded, transformers' processors return boxes relative to the padded image. Models
    that read `pixel_mask` predict them relative to the image itself, so that the collator converts the boxes for these
    models. To YOLOS, padding is part of the image.

    A transform may call the image processor itself. Its rows with `pixel_values`, `labels`, and perhaps `pixel_mask`,
    are padded to one size and stay as they are otherwise.

    A call returns `pixel_values` of shape `(images, channels, height, width)`; `pixel_mask` of shape
    `(images, height, width)`, if the processor pads; and `labels`, a `dict` for each image with `class_labels` (int64,
    `(n,)`), `boxes` ((cx, cy, w, h) relative to the image, float32, `(n, 4)`), `forget` (bool, `(n,)`, with
    `forget_classes`), `crowd_labels` and `crowd_boxes` of the same form (if there are crowds), and other outputs of
    the processor.

    Args:
        processor (`transformers.BaseImageProcessor` or `None`):
            The model's image processor. Rows whose transform has called it need none if all images have one size.
        forget_classes (`Iterable[int]`, *optional*):
            Ids of the categories that the task forgets. Each label then says in `forget` which of its boxes are of
            these; training wants it, evaluation does not.
        num_labels (`int`, *optional*):
            Number of categories of the model's head. Others are refused.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images, in any form that [`to_image`] reads.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            Column of annotations, see [`prepare_boxes`]; categories are ids.

    Raises:
        InvalidBoxError: In a call, if a box does not have an area, is not finite or lies outside the image.
        InvalidInputError: In a call, if a row lacks an image or annotations, or the head does not have a category.

    Example:
        ```py
        >>> collate = PairedCollator(DetectionCollator(processor, forget_classes=split.forget_classes))
        ```
    """

    def __init__(
        self,
        processor: Any,
        forget_classes: Iterable[int] | None = None,
        *,
        num_labels: int | None = None,
        image_column: str = "image",
        objects_column: str = "objects",
    ):
        self.processor = processor
        self.forget_classes = (
            None if forget_classes is None else torch.tensor(sorted(forget_classes), dtype=torch.long)
        )
        self.num_labels = num_labels
        self.image_column = image_column
        self.objects_column = objects_column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if is_prepared(rows[0], self.image_column):
            return self._pad_prepared(rows)
        for argument, column in (("image_column", self.image_column), ("objects_column", self.objects_column)):
            if column not in rows[0]:
                raise no_column(rows[0], argument, column, "Name it, and check what the dataset's transform returns.")
        column = self.image_column
        images = [picture_for(self.processor, row, column, number) for number, row in enumerate(rows)]
        found = [
            self._annotations(row[self.objects_column], image, cell_name(row, self.objects_column, number))
            for number, (row, image) in enumerate(zip(rows, images, strict=True))
        ]
        annotations = [
            {"image_id": _image_id(row, number), "annotations": own}
            for number, (row, own) in enumerate(zip(rows, found, strict=True))
        ]
        prepared = self.processor(images=images, annotations=annotations, return_tensors="pt")
        batch = {name: prepared[name] for name in ("pixel_values", "pixel_mask") if name in prepared}
        labels = [self._label(label) for label in prepared["labels"]]
        for label, own, image in zip(labels, found, images, strict=True):
            label |= _crowds(own, _width_height(image))
        if "pixel_mask" in prepared:
            masked = self._masked
            for label, mask in zip(labels, prepared["pixel_mask"], strict=True):
                filled = _filled_share(mask)
                if masked:
                    label["boxes"] = label["boxes"] / filled
                elif "crowd_boxes" in label:
                    label["crowd_boxes"] = label["crowd_boxes"] * filled
        batch["labels"] = labels
        return batch

    def _pad_prepared(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pads rows whose transform has called the image processor itself, for one row or several at once."""
        images = [torch.as_tensor(row["pixel_values"]) for row in rows]
        own_masks = [
            torch.as_tensor(row["pixel_mask"])
            if "pixel_mask" in row
            else torch.ones(image.shape[-2:], dtype=torch.int64)
            for row, image in zip(rows, images, strict=True)
        ]
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        masks = [_padded(mask, height, width) for mask in own_masks]
        labels = [self._label({key: torch.as_tensor(value) for key, value in row["labels"].items()}) for row in rows]
        if not all(mask.all() for mask in masks):
            if self.processor is None:
                raise InvalidInputError(
                    "processing_class",
                    None,
                    "the model's image processor, because the images differ in size, and padding changes their boxes",
                    "Pass it, or resize all images to one size in the transform.",
                )
            for label, own, mask in zip(labels, own_masks, masks, strict=True):
                label["boxes"] = label["boxes"] / _filled_share(own) * (1 if self._masked else _filled_share(mask))
        batch: dict[str, Any] = {"pixel_values": torch.stack([_padded(image, height, width) for image in images])}
        if "pixel_mask" in rows[0] or (self._masked and not all(mask.all() for mask in masks)):
            batch["pixel_mask"] = torch.stack(masks)
        return {**batch, "labels": labels}

    @property
    def _masked(self) -> bool:
        """Whether the model reads `pixel_mask`."""
        return any(cls.__name__.startswith(_MASKED_PROCESSORS) for cls in type(self.processor).__mro__)

    def _label(self, label: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds `forget` after the processor, which leaves annotations out."""
        label = dict(label)
        if self.forget_classes is not None:
            label["forget"] = torch.isin(label["class_labels"], self.forget_classes)
        return label

    def _annotations(self, objects: Any, image: Any, place: str) -> list[dict[str, Any]]:
        boxes, categories, crowd = _split_fields(objects, place)
        known = categories >= 0 if self.num_labels is None else (categories >= 0) & (categories < self.num_labels)
        if not known.all():
            limit = "" if self.num_labels is None else f" to {self.num_labels - 1}"
            expected = f"ids of the model's head, from 0{limit}"
            raise InvalidInputError(f"{place}, category", int(categories[~known][0]), expected, _ALIGN)
        size = np.array(_width_height(image))
        sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
        sound &= ((boxes[:, :2] < size) & (boxes[:, :2] + boxes[:, 2:] > 0)).all(axis=1)
        if not sound.all():
            raise InvalidBoxError(
                f"{place}, box",
                boxes[~sound][0].tolist(),
                f"(x, y, w, h) with w, h > 0 in the image of {size[0]}×{size[1]} pixels",
                "Check the dataset with prepare_boxes, or let the transform remove boxes that leave the image.",
            )
        return [
            {"bbox": box, "category_id": category, "area": box[2] * box[3], "iscrowd": int(many)}
            for box, category, many in zip(boxes.tolist(), categories.tolist(), crowd.tolist(), strict=True)
        ]


def is_prepared(row: Mapping[str, Any], image_column: str = "image") -> bool:
    """Whether a transform has prepared a row for a detector: pixels, and labels with boxes."""
    labels = row.get("labels")
    made = isinstance(labels, Mapping) and {"class_labels", "boxes"} <= set(labels)
    return made and "pixel_values" in row and image_column not in row


def _padded(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pads an image or its mask with zeros to the right and below."""
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def _split_fields(objects: Any, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, categories and crowds of one image, from a struct of lists or a list of structs."""
    if not isinstance(objects, Mapping):
        if not all(isinstance(item, Mapping) for item in objects):
            raise PrivateInputError(place, objects, "boxes and categories", "Convert masks to boxes before.")
        keys = objects[0] if len(objects) else (BOX_KEYS[0], CATEGORY_KEYS[0])
        objects = {key: [item[key] for item in objects] for key in keys}
    fields = [next((key for key in keys if key in objects), None) for keys in (BOX_KEYS, CATEGORY_KEYS)]
    if None in fields:
        expected = f"fields with boxes ({', '.join(BOX_KEYS)}) and categories ({', '.join(CATEGORY_KEYS)})"
        raise InvalidInputError(place, list(objects), expected, "Check what the dataset's transform returns.")
    boxes, categories = (objects[key] for key in fields)
    array = np.asarray(boxes, dtype=np.float64) if len(boxes) else np.zeros((0, 4))
    ids = np.asarray(categories) if len(categories) else np.zeros(0, np.int64)
    crowd = np.asarray(objects.get("iscrowd", np.zeros(len(ids))), dtype=bool)
    if array.shape != (len(ids), 4) or crowd.shape != (len(ids),) or ids.ndim != 1:
        raise InvalidInputError(
            place,
            f"boxes of shape {array.shape} and {len(ids)} categories",
            "(n, 4) and n",
            "Convert masks to boxes before. A transform must remove a box together with its category.",
        )
    if ids.dtype.kind not in "iu":
        raise PrivateInputError(f"{place}, category", categories[0], "an id", _ALIGN)
    return array, ids.astype(np.int64), crowd


def _crowds(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The crowds of an image of (width, height) pixels as `crowd_labels` and `crowd_boxes`; empty without crowds."""
    crowds = [one for one in annotations if one["iscrowd"]]
    if not crowds:
        return {}
    boxes = torch.tensor([one["bbox"] for one in crowds], dtype=torch.float32)
    boxes = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1) / torch.tensor([*size, *size])
    return {"crowd_labels": torch.tensor([one["category_id"] for one in crowds]), "crowd_boxes": boxes}


def _filled_share(mask: torch.Tensor) -> torch.Tensor:
    """The share of a padded mask of shape `(height, width)` that is image, as (w, h, w, h)."""
    height, width = mask[:, 0].float().mean(), mask[0].float().mean()
    return torch.stack([width, height, width, height])


def _image_id(row: Mapping[str, Any], number: int) -> int:
    """The row's `image_id`; its place in the batch if that is not a number, which processors need."""
    image_id = row.get("image_id")
    return int(image_id) if isinstance(image_id, (Integral, np.integer)) else number


def _width_height(image: Any) -> tuple[int, int]:
    if isinstance(image, Picture):
        return image.size
    height, width = get_image_size(image)
    return width, height
