"""Collators of images, sounds, tokens and tensors, and the choice between them by what a row holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL.Image import Image as Picture
from transformers import BaseImageProcessor, DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from ..errors import InvalidInputError, PrivateInputError
from .boxes.collation import DetectionCollator, is_prepared
from .boxes.columns import is_object_column
from .rows import (
    LABEL_NAMES,
    NamedRows,
    cell_name,
    dimensions,
    is_sound,
    label_name,
    labels_of,
    may_be_input,
    no_column,
    no_label,
    picture_for,
    sound_features,
)

_NO_IMAGES = "Rename the column of the images to 'image', or pass a `data_collator` that reads these columns."

# Inputs of transformers' models: rows that have one of them are ready for the model.
_MODEL_INPUTS = ("pixel_values", "input_ids", "inputs_embeds", "input_values", "input_features")


class ImageCollator:
    """Collates rows with an image into `pixel_values` and `labels`.

    Images become RGB, or grey for a processor with one channel (the length of its `image_mean`). A call returns
    `pixel_values`, float, shape `(batch, channels, height, width)`, and `labels`, int64, shape `(batch,)`.

    Args:
        processor (`transformers.BaseImageProcessor`):
            The model's image processor.
        image_column (`str`, *optional*, defaults to `"image"`):
            Column of the images, in any form that [`to_image`] reads.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column that holds integer labels.

    Raises:
        InvalidInputError: In a call, if a cell does not hold a picture or a label. The error names row and column.
    """

    def __init__(self, processor: Any, image_column: str = "image", label_column: str = "label"):
        self.processor = processor
        # The processor has one mean for each channel. Without means there are three channels.
        mean = getattr(processor, "image_mean", None)
        channels = len(mean) if isinstance(mean, Sequence) else 3
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.image_column not in rows[0]:
            raise no_column(rows[0], "image_column", self.image_column, _NO_IMAGES)
        pixel_values = self.pixel_values(rows, self.image_column)
        return {"pixel_values": pixel_values, "labels": labels_of(rows, self.label_column)}

    def pixel_values(self, rows: Sequence[Mapping[str, Any]], column: str) -> torch.Tensor:
        """The images of a column after the image processor."""
        images = [picture_for(self.processor, row, column, number, self.mode) for number, row in enumerate(rows)]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


class TensorCollator:
    """Collates rows of tensors, arrays and numbers as [`transformers.default_data_collator`] does.

    The labels become `labels`. Other columns named `label`, `labels` or `label_ids` are left out, because the collator
    would read them as the labels; without a `label_column` they are the labels. Pictures and single numbers are
    left out of rows that have an input of transformers' models, such as `pixel_values`.

    Args:
        label_column (`str`, *optional*, defaults to `"label"`):
            Column that holds integer labels.

    Raises:
        InvalidInputError: In a call, if a column holds pictures, sounds or other cells that are not numbers, or values
            of different shapes.
    """

    def __init__(self, label_column: str = "label"):
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self._refuse_media(rows[0])
        has_labels = label_name(rows[0], self.label_column) is not None
        labels = {"labels": labels_of(rows, self.label_column)} if has_labels else {}
        return {**self._stacked(rows, self.inputs(rows[0])), **labels}

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuses a row that cannot be collated.

        Raises:
            InvalidInputError: If a column cannot become a tensor.
        """
        self._refuse_media(row)
        self._stacked([row], self.inputs(row))

    def inputs(self, row: Mapping[str, Any]) -> list[str]:
        """The columns of a row that are collated besides the labels."""
        names = [name for name in row if name not in {*LABEL_NAMES, self.label_column}]
        if not any(name in row for name in _MODEL_INPUTS):
            return names
        return [name for name in names if may_be_input(row[name])]

    def _stacked(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, torch.Tensor]:
        try:
            return default_data_collator([{name: row[name] for name in names} for row in rows])
        except (ValueError, RuntimeError, TypeError):
            _refuse_unequal(rows, names)
            _refuse_unstackable(rows, names)
            raise

    def _refuse_media(self, row: Mapping[str, Any]) -> None:
        """Refuses a picture or a sound, which a processor has to prepare."""
        for name in self.inputs(row):
            found = "sound" if is_sound(row[name]) else "a picture" if isinstance(row[name], Picture) else None
            if found is not None:
                kind = "FeatureExtractor" if found == "sound" else "ImageProcessor"
                raise InvalidInputError(
                    cell_name(row, name),
                    found,
                    "the tensor that the model's processor makes of it",
                    f"Pass the processor as `processing_class`, Auto{kind}.from_pretrained(...), your own "
                    "`data_collator`, or a dataset whose transform makes tensors, dataset.with_transform(...).",
                )


def _refuse_unequal(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        shapes = [np.shape(row[name]) for row in rows if not isinstance(row[name], str)]
        other = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise InvalidInputError(
                cell_name(rows[other], name, other),
                f"a value of shape {shapes[other]}",
                f"the shape of the first row, {shapes[0]}",
                "Pass the tokenizer or feature extractor that pads them as `processing_class`, or pad them before.",
            )


def _refuse_unstackable(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        for number, row in enumerate(rows):
            try:
                default_data_collator([{name: row[name]}])
            except (ValueError, RuntimeError, TypeError):
                raise PrivateInputError(
                    cell_name(row, name, number),
                    row[name],
                    "numbers, which can become a tensor",
                    f"Remove the column, dataset.remove_columns({name!r}), or pass a collator that reads it.",
                ) from None


class RowPlan(NamedTuple):
    """How rows are collated. The tokenizer or feature extractor `padder` pads the columns in `padded`."""

    image_column: str | None = None
    sound_column: str | None = None
    padder: Any = None
    padded: Sequence[str] = ()


class RowCollator:
    """Collates rows by what they hold.

    The image processor prepares pictures, the feature extractor sounds. Tokens are padded as in
    `transformers.Trainer`, and tensors are stacked.

    Args:
        processing_class (`ProcessorMixin` or a part of one, *optional*):
            An image processor, a tokenizer, a feature extractor, or a processor of several of these.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of integer labels. If a row lacks it, the column `labels`, `label` or `label_ids` of a transform.
        features (`datasets.Features`, *optional*):
            Features of the dataset, which show its columns of pictures.

    Attributes:
        image_column (`str`):
            The column of the pictures, as far as it is known.

    Raises:
        InvalidInputError: In a call, if the rows do not hold inputs of a model, or a cell cannot be used.
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

    def check(self, row: Mapping[str, Any]) -> None:
        """Checks that rows like this one can be collated, before any work.

        Raises:
            InvalidInputError: If they cannot.
        """
        plan = self.plan(row)
        # If the dataset itself lacks the column, the code that reads the classes of all rows refuses it.
        is_lost = self.features is None or self.label_column in self.features
        if is_lost and label_name(row, self.label_column) is None:
            raise no_label(row, self.label_column)
        if plan == RowPlan():
            self.tensors.check(row)
        self.image_column = plan.image_column or "pixel_values"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        plan = self.plan(rows[0])
        if plan == RowPlan():
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

    def plan(self, row: Mapping[str, Any]) -> RowPlan:
        """How rows like this one are collated. With an empty plan they are only stacked.

        Raises:
            InvalidInputError: If the row does not hold inputs of a model, or has several columns of pictures.
        """
        image_column, sound_column, padder = self._image_column(row), self._sound_column(row), self._padder(row)
        padded: list[str] = []
        if padder is not None:
            padded = [name for name in self.tensors.inputs(row) if name not in (image_column, sound_column)]
        elif image_column is sound_column is None:
            self._refuse_unprepared(row)
            return RowPlan()
        return RowPlan(image_column, sound_column, padder, padded)

    def _image_column(self, row: Mapping[str, Any]) -> str | None:
        if self.images is None or "pixel_values" in row:
            return None
        if "image" in row:
            return "image"
        found = [name for name in self.picture_columns if name in row]
        found = found or [name for name, cell in row.items() if isinstance(cell, Picture)]
        if len(found) > 1:
            fix = "Rename one of them to 'image', or remove the others with `dataset.remove_columns`."
            raise InvalidInputError("image_column", found, "one column of pictures, or 'image' among them", fix)
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
        """Refuses a row without inputs of a model and without inputs of the processor, if there is a processor."""
        names = [name for name in self.tensors.inputs(row) if not isinstance(row[name], (str, type(None)))]
        if any(name in row for name in _MODEL_INPUTS) or any(dimensions(row[name]) for name in names):
            return
        if self.images is not None:
            raise no_column(row, "image_column", "image", _NO_IMAGES)
        for kind, fix in (
            (self.tokenizer, "Tokenize the texts: dataset.map(lambda row: tokenizer(row['text'], truncation=True))."),
            (self.extractor, "Rename the column of the sounds to 'audio'."),
        ):
            if kind is not None and not names:
                expected = f"{kind.model_input_names[0]!r} among its columns"
                raise InvalidInputError("the first row", sorted(row), expected, fix)


def default_collator(
    processing_class: Any = None, label_column: str = "label", dataset: Any = None
) -> RowCollator | DetectionCollator:
    """Builds a [`DetectionCollator`] if the labels of `dataset` are annotated boxes, else a [`RowCollator`].

    Reads the first row of `dataset`, because a transform may change its columns, and checks that it can be collated.

    Args:
        processing_class (`ProcessorMixin` or a part of one, *optional*):
            An image processor, a tokenizer, a feature extractor, or a processor of several of these.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.
        dataset (map-style dataset, *optional*):
            The training data.

    Returns:
        [`RowCollator`] or [`DetectionCollator`]: The collator.

    Raises:
        InvalidInputError: If boxes or pictures need an image processor and there is none; or if the first row cannot
            be read, does not have a label, or does not hold inputs of a model.
    """
    if is_object_column(dataset, label_column):
        processor = component(processing_class, "image_processor", BaseImageProcessor)
        if processor is None and not is_prepared(_first_row(dataset) or {}):
            raise InvalidInputError(
                "processing_class",
                type(processing_class).__name__,
                f"the model's image processor, which prepares the boxes of {label_column!r}",
                "Pass AutoImageProcessor.from_pretrained(...), or your own `data_collator`.",
            )
        return DetectionCollator(processor, objects_column=label_column)
    collator = RowCollator(processing_class, label_column, getattr(dataset, "features", None))
    if (row := _first_row(dataset)) is not None:
        collator.check(row)
    return collator


def _first_row(dataset: Any) -> Mapping[str, Any] | None:
    """The first row as the collator gets it; `None` without rows."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    row = NamedRows(dataset, "the training data")[0]
    return row if isinstance(row, Mapping) else None


def component(processing_class: Any, name: str, kind: type) -> Any:
    """The part `name` of a processor, or the processor itself, if it is of this kind; else `None`."""
    part = getattr(processing_class, name, processing_class)
    return part if isinstance(part, kind) else None
