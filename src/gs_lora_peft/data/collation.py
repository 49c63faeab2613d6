"""Batches of rows: what a row holds decides how it is collated."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL.Image import Image as Picture
from transformers import BaseImageProcessor, DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from ..errors import InvalidInputError
from .boxes.collation import DetectionCollator, is_prepared
from .boxes.columns import is_object_column
from .rows import NamedRows, is_sound, no_column, picture_for, sound_features, where

_LABELS = ("labels", "label", "label_ids")


_RENAME = "Rename the column of the images, or give a `data_collator` that reads what is there."


# What transformers' models take: a row that has one of these needs nothing else made of it.
_MODEL_INPUTS = ("pixel_values", "input_ids", "inputs_embeds", "input_values", "input_features")


class ImageCollator:
    """
    Collates rows with an image into `pixel_values` and `labels`.

    Images become RGB, or grey for a processor of one channel (seen from the length of its `image_mean`).

    Args:
        processor (`transformers.BaseImageProcessor`):
            The model's image processor.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images, in any form that [`to_image`] knows.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column that holds integer labels.

    Returns:
        `dict`: `pixel_values`, float, shape `(batch, channels, height, width)`, and `labels`, int64, shape `(batch,)`.

    Raises:
        InvalidInputError: When called, naming row and column, if a cell holds no picture or no label.
    """

    def __init__(self, processor: Any, image_column: str = "image", label_column: str = "label"):
        self.processor = processor
        # Grey or palette images: the processor takes as many channels as it has means, three where it has none.
        mean = getattr(processor, "image_mean", None)
        channels = len(mean) if isinstance(mean, Sequence) else 3
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.image_column not in rows[0]:
            raise no_column(rows[0], "image_column", self.image_column, _RENAME)
        pixel_values = self.pixel_values(rows, self.image_column)
        return {"pixel_values": pixel_values, "labels": labels_of(rows, self.label_column)}

    def pixel_values(self, rows: Sequence[Mapping[str, Any]], column: str) -> torch.Tensor:
        """The images of a column, prepared."""
        images = [picture_for(self.processor, row, column, number, self.mode) for number, row in enumerate(rows)]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


class TensorCollator:
    """
    Collates rows of tensors, arrays and numbers as [`transformers.default_data_collator`] does, labels as `labels`.

    Other columns called `label`, `labels` or `label_ids` are left out: the collator would take them for the labels.
    Where a transform calls the labels so, and there is no `label_column`, they are the labels. In rows with an input
    of transformers' models, such as `pixel_values`, pictures and single numbers are left out, too.

    Args:
        label_column (`str`, *optional*, defaults to `"label"`):
            Column that holds integer labels.

    Raises:
        ValueError: When called, if a column holds pictures, sounds or other cells that are not numbers, or values that
            are not all of one shape.
    """

    def __init__(self, label_column: str = "label"):
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.refuse_pictures(rows[0])
        names = self.inputs(rows[0])
        labels = (
            {} if label_name(rows[0], self.label_column) is None else {"labels": labels_of(rows, self.label_column)}
        )
        return {**self._stacked(rows, names), **labels}

    def _stacked(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor]:
        if not names:
            return {}
        try:
            return default_data_collator([{name: row[name] for name in names} for row in rows])
        except (ValueError, RuntimeError, TypeError):
            _refuse_unequal(rows, names)
            _refuse_unstackable(rows, names)
            raise

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuses a row of which a column that would be collated cannot be made a tensor.

        Raises:
            ValueError: If there is one.
        """
        self.refuse_pictures(row)
        self._stacked([row], self.inputs(row))

    def refuse_pictures(self, row: Mapping[str, Any]) -> None:
        """Refuses a row of which a column that would be collated holds a picture or a sound.

        Raises:
            ValueError: If one does.
        """
        for name in self.inputs(row):
            if is_sound(row[name]):
                raise InvalidInputError(
                    where(row, name),
                    "sound",
                    "what the model's feature extractor makes of it",
                    "Give the extractor as `processing_class`, AutoFeatureExtractor.from_pretrained(...), or give a "
                    "`data_collator` of your own.",
                )
            if isinstance(row[name], Picture):
                raise InvalidInputError(
                    where(row, name),
                    "a picture",
                    "the tensor that the model's image processor makes of it",
                    "Give the processor as `processing_class`, AutoImageProcessor.from_pretrained(...), or give a "
                    "`data_collator` of your own, or a dataset whose transform makes tensors: "
                    "dataset.with_transform(...).",
                )

    def inputs(self, row: Mapping[str, Any]) -> list[str]:
        """The columns of a row that are collated, beside the labels."""
        names = [name for name in row if name not in {*_LABELS, self.label_column}]
        if not any(name in row for name in _MODEL_INPUTS):
            return names
        return [name for name in names if _may_be_input(row[name])]


class Plan(NamedTuple):
    """
    What is done with rows of a kind.

    The tokenizer or the feature extractor in `padder` pads the inputs in `padded`.
    """

    image_column: str | None = None
    sound_column: str | None = None
    padder: Any = None
    padded: Sequence[str] = ()


class RowCollator:
    """Collates rows by what they hold.

    The image processor takes pictures, the feature extractor sounds. Tokens are padded as `transformers.Trainer` pads
    them, and tensors are stacked.

    Args:
        processing_class (*optional*):
            An image processor, a tokenizer, a feature extractor, or a processor of several of these.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of integer labels. Where a row has no such column, `labels` or `label` of a transform are taken.
        features (`datasets.Features`, *optional*):
            What the columns of the data set are, to find its pictures by.

    Attributes:
        image_column (`str`):
            The column that holds what a model sees, as far as it is known.

    Raises:
        ValueError: When called, if the rows hold nothing that a model takes, or a cell cannot be used.
    """

    def __init__(self, processing_class: Any = None, label_column: str = "label", features: Any = None):
        processor = component(processing_class, "image_processor", BaseImageProcessor)
        self.images = None if processor is None else ImageCollator(processor, label_column=label_column)
        self.tokenizer = component(processing_class, "tokenizer", PreTrainedTokenizerBase)
        self.extractor = component(processing_class, "feature_extractor", SequenceFeatureExtractor)
        self.tensors = TensorCollator(label_column)
        self.label_column = label_column
        self.features = features
        self.picture_columns = [name for name, kind in (features or {}).items() if isinstance(kind, datasets.Image)]
        self.image_column = "pixel_values" if self.images is None else "image"

    def look_at(self, row: Mapping[str, Any]) -> None:
        """Checks that rows like this one can be collated, before any work.

        Raises:
            ValueError: If not.
        """
        plan = self.plan(row)
        # A column that the data set itself does not have is refused by what reads the classes of all rows.
        lost = self.features is None or self.label_column in self.features
        if lost and label_name(row, self.label_column) is None:
            raise _no_label(row, self.label_column)
        if plan == Plan():
            self.tensors.check(row)
        self.image_column = plan.image_column or "pixel_values"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        plan = self.plan(rows[0])
        if plan == Plan():
            return self.tensors(rows)
        batch: dict[str, torch.Tensor] = {}
        if plan.image_column is not None and self.images is not None:
            batch["pixel_values"] = self.images.pixel_values(rows, plan.image_column)
        if plan.sound_column is not None:
            batch |= sound_features(self.extractor, rows, plan.sound_column)
        if plan.padded:
            inputs = [{name: row[name] for name in plan.padded} for row in rows]
            batch |= DataCollatorWithPadding(plan.padder)(inputs)
        batch["labels"] = labels_of(rows, self.label_column)
        return batch

    def plan(self, row: Mapping[str, Any]) -> Plan:
        """What is done with rows like this one; nothing but stacking with an empty plan.

        Raises:
            ValueError: If a row has nothing that a model takes, or several columns of pictures.
        """
        image_column, sound_column, padder = self._image_column(row), self._sound_column(row), self._padder(row)
        padded: list[str] = []
        if padder is not None:
            padded = [name for name in self.tensors.inputs(row) if name not in (image_column, sound_column)]
        elif image_column is sound_column is None:
            self._refuse_unprepared(row)
            return Plan()
        return Plan(image_column, sound_column, padder, padded)

    def _image_column(self, row: Mapping[str, Any]) -> str | None:
        if self.images is None or "pixel_values" in row:
            return None
        if "image" in row:
            return "image"
        found = [name for name in self.picture_columns if name in row]
        found = found or [name for name, cell in row.items() if isinstance(cell, Picture)]
        if len(found) > 1:
            raise InvalidInputError(
                "image_column",
                found,
                "one column of pictures, or 'image' among them",
                "Rename one of them to 'image', or leave the others out with `dataset.select_columns`.",
            )
        return found[0] if found else None

    def _sound_column(self, row: Mapping[str, Any]) -> str | None:
        if self.extractor is None or any(name in row for name in _MODEL_INPUTS):
            return None
        if "audio" in row:
            return "audio"
        return next((name for name, cell in row.items() if is_sound(cell)), None)

    def _padder(self, row: Mapping[str, Any]) -> Any:
        for kind in (self.tokenizer, self.extractor):
            if kind is not None and kind.model_input_names[0] in row:
                return kind
        return None

    def _refuse_unprepared(self, row: Mapping[str, Any]) -> None:
        """Where something that prepares rows was given, and the row has nothing for it nor for a model."""
        names = [name for name in self.tensors.inputs(row) if not isinstance(row[name], (str, type(None)))]
        if any(name in row for name in _MODEL_INPUTS) or any(_dimensions(row[name]) for name in names):
            return
        if self.images is not None:
            raise no_column(row, "image_column", "image", _RENAME)
        for kind, fix in (
            (self.tokenizer, "Tokenise the texts: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."),
            (self.extractor, "Rename the column of the sounds to 'audio'."),
        ):
            if kind is not None and not names:
                raise InvalidInputError(
                    "the first row", sorted(row), f"{kind.model_input_names[0]!r} among its columns", fix
                )


def default_collator(
    processing_class: Any = None, label_column: str = "label", dataset: Any = None
) -> RowCollator | DetectionCollator:
    """[`DetectionCollator`] where the labels of `dataset` are annotated boxes, else [`RowCollator`].

    The first row of `dataset` is read: a format or a transform may have made other columns than it has, and what
    cannot be collated is refused before any work.

    Raises:
        ValueError: If there are boxes or pictures and no image processor to prepare them, or the first row has nothing
            that a model takes, no label, or cannot be read.
    """
    if is_object_column(dataset, label_column):
        processor = component(processing_class, "image_processor", BaseImageProcessor)
        if processor is None and not is_prepared(_first_row(dataset) or {}):
            raise InvalidInputError(
                "processing_class",
                type(processing_class).__name__,
                f"the model's image processor, which prepares the boxes of {label_column!r}",
                "Give AutoImageProcessor.from_pretrained(...), or a `data_collator` of your own.",
            )
        return DetectionCollator(processor, objects_column=label_column)
    collator = RowCollator(processing_class, label_column, getattr(dataset, "features", None))
    if (row := _first_row(dataset)) is not None:
        collator.look_at(row)
    return collator


def _first_row(dataset: Any) -> Mapping[str, Any] | None:
    """As the collator gets it; `None` where there is none."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    row = NamedRows(dataset, "the training data")[0]
    return row if isinstance(row, Mapping) else None


def component(processing_class: Any, name: str, kind: type) -> Any:
    """The part of a processor that prepares one kind of input, or the processor where it is that part; else `None`."""
    part = getattr(processing_class, name, processing_class)
    return part if isinstance(part, kind) else None


def label_name(row: Mapping[str, Any], label_column: str) -> str | None:
    """The column of the labels: `label_column`, or what a transform calls them; `None` where there is none."""
    return next((name for name in (label_column, *_LABELS) if name in row), None)


def labels_of(rows: Sequence[Mapping[str, Any]], label_column: str) -> torch.Tensor:
    """The labels of rows, int64, shape `(rows,)`.

    Raises:
        InvalidInputError: Naming row and column, if one is missing or no whole number.
    """
    return torch.tensor([_label(row, label_column, number) for number, row in enumerate(rows)], dtype=torch.int64)


def _label(row: Mapping[str, Any], label_column: str, number: int) -> int:
    # Of every row: the two halves of a batch may come from data sets with different transforms.
    column = label_name(row, label_column)
    if column is None:
        raise _no_label(row, label_column)
    label = row[column]
    try:
        return operator.index(label.item() if hasattr(label, "item") else label)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInputError(
            where(row, column, number), label, "a class id", "Number the classes, and leave unlabelled rows out."
        ) from None


def _no_label(row: Mapping[str, Any], label_column: str) -> InvalidInputError:
    fix = "Keep it in the transform of the data set, or give the column of the labels as `label_column`."
    return no_column(row, "label_column", label_column, fix)


def _may_be_input(cell: Any) -> bool:
    """Whether a model may take it: no text, no picture, and no number that stands for the whole row, as its id."""
    return not isinstance(cell, (str, bytes, Picture, Mapping, type(None))) and _dimensions(cell) > 0


def _dimensions(cell: Any) -> int:
    """0 for a single value; a list counts as 1, because it may be ragged."""
    return getattr(cell, "ndim", 1 if isinstance(cell, (list, tuple)) else 0)


def _refuse_unequal(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        shapes = [np.shape(row[name]) for row in rows if not isinstance(row[name], str)]
        other = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise InvalidInputError(
                where(rows[other], name, other),
                f"a value of shape {shapes[other]}",
                f"the shape of the first one, {shapes[0]}",
                "Give what pads them as `processing_class`, a tokenizer or a feature extractor, or pad them before.",
            )


def _refuse_unstackable(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        for number, row in enumerate(rows):
            try:
                default_data_collator([{name: row[name]}])
            except (ValueError, RuntimeError, TypeError):
                raise InvalidInputError(
                    where(row, name, number),
                    row[name],
                    "numbers that a tensor can be made of",
                    f"Leave the column out, dataset.remove_columns({name!r}), or give a collator that reads it.",
                ) from None
