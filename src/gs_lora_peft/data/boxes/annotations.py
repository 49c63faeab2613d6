"""Annotated boxes: reading the usual layouts as one, checking them, and aligning their categories with a model.

This reads the annotations and at most the headers of the images. It decodes no pixels and runs no transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from ...checking import checked
from ...errors import InvalidInputError, PrivateInputError
from ..alignment import model_label_ids
from ..classes import check_dataset, ids_by_name
from .columns import (
    ObjectColumn,
    header_sizes,
    ids_and_names,
    numbers_of,
    read_object_column,
    replaced,
    stored_sizes,
    table_rows,
)

Data = TypeVar("Data", Dataset, DatasetDict)

BoxFormat = Literal["xywh", "xyxy"]
InvalidBoxes = Literal["raise", "drop"]

_SHOWN = 10  # names listed in an error


class InvalidBoxError(InvalidInputError):
    """A box without area, that is not four finite numbers, or outside its image: `name` has its row."""


@dataclass(frozen=True)
class Annotations:
    """The annotations of a dataset's images, in the order of its rows.

    Attributes:
        rows (`np.ndarray` of shape `(n,)`, int64):
            Row of the dataset.
        boxes (`np.ndarray` of shape `(n, 4)`, float64):
            (x, y, w, h) in pixels.
        categories (`np.ndarray` of shape `(n,)`, int64):
            Category id.
        crowd (`np.ndarray` of shape `(n,)`, bool):
            Whether it is a region of many objects, which is not a training sample.
        names (`list[str]` or `None`):
            Names of the categories by id.
        stored (`pyarrow.Array`):
            Every box of `column` as it was stored, perhaps not of four numbers.
        places (`np.ndarray` of shape `(n,)`, int64):
            Index of the annotation in `column`.
        column ([`ObjectColumn`]):
            The annotations as they are stored, with the fields `bbox`, `category` and any others. It includes rows
            that a selection of the dataset leaves out.
    """

    rows: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray
    names: list[str] | None
    stored: pa.Array
    places: np.ndarray
    column: ObjectColumn


def prepare_boxes(
    dataset: Data,
    objects_column: str = "objects",
    *,
    label2id: Mapping[Any, Any] | None = None,
    box_format: BoxFormat = "xywh",
    invalid: InvalidBoxes = "raise",
) -> Data:
    """Converts annotated boxes to the layout that splits, collators and scores read, and checks them.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`):
            One row for each image. Its column of annotations is a struct of lists or a list of structs. The boxes are
            `bbox`, `bboxes` or `boxes`. The categories are `category`, `categories`, `category_id`, `label` or
            `labels`: a `ClassLabel`, names, or ids. Boxes are compared with the columns `width` and `height`. Without
            them, they are compared with the headers of the images in `image` (or in the only column of images) that
            are in the dataset or in local files. Other images are not compared.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            The column of annotations.
        label2id (`Mapping[str, int]`, *optional*):
            `model.config.label2id`, to give the categories the model's ids; ids may be text ("0"). A name may list
            synonyms, separated by commas. Without it, names are numbered in their own order, and ids stay.
        box_format (`"xywh"` or `"xyxy"`, *optional*, defaults to `"xywh"`):
            Format of the boxes in `dataset`, in pixels: `"xywh"` (left, top, width, height, as in COCO) or `"xyxy"`
            (left, top, right, bottom).
        invalid (`"raise"` or `"drop"`, *optional*, defaults to `"raise"`):
            Whether boxes without area, with values that are not finite, or wholly outside their image raise an error
            or are dropped. COCO has a few. Boxes that reach beyond the image stay; image processors clip them.

    Returns:
        `datasets.Dataset` or `datasets.DatasetDict`: The dataset with `objects_column` as a struct of lists: `bbox`
        (x, y, w, h), `category` (a `ClassLabel` if there are names) and every other field.

    Raises:
        InvalidBoxError: If `invalid="raise"` and there are such boxes; if most boxes reach beyond their images, as
            corners do when read as sizes; or if no box reaches beyond one pixel, as relative boxes do.
        InvalidInputError: If the column lacks boxes or categories, an annotation does not have a category, or the
            model does not have one of the categories.

    Example:
        ```py
        >>> dataset = prepare_boxes(load_dataset("cppe-5"), label2id=model.config.label2id, invalid="drop")
        ```
    """
    checked("box_format", box_format, BoxFormat)
    checked("invalid", invalid, InvalidBoxes)
    if isinstance(dataset, dict):
        if label2id is None:
            names = {
                split: _categories(read_object_column(part, objects_column))[1] for split, part in dataset.items()
            }
            _refuse_other_names(names, objects_column)
        options: dict[str, Any] = {"label2id": label2id, "box_format": box_format, "invalid": invalid}
        return DatasetDict({split: prepare_boxes(part, objects_column, **options) for split, part in dataset.items()})
    label2id = None if label2id is None else ids_by_name(label2id)
    annotations = read_annotations(dataset, objects_column, box_format)
    sizes = stored_sizes(dataset)
    wrong = _invalid(annotations, header_sizes(dataset, annotations.rows) if sizes is None else sizes)
    if invalid == "raise":
        _refuse_invalid(annotations, wrong)
    column = annotations.column
    if label2id is not None:
        column = _renumbered(column, annotations, objects_column, label2id)
    kept = np.ones(int(column.lengths.sum()), dtype=bool)
    kept[annotations.places[list(wrong)]] = False
    return replaced(dataset, objects_column, column.filtered(kept))


def checked_annotations(dataset: Dataset, objects_column: str) -> Annotations:
    """Reads the annotations of a dataset, and checks that all of them can be used.

    Raises:
        InvalidBoxError: If a box does not have an area, is not finite or lies outside its image, by the columns
            `width` and `height`. Only [`prepare_boxes`] reads the headers of the images.
        InvalidInputError: As in [`read_annotations`].
    """
    annotations = read_annotations(dataset, objects_column)
    _refuse_invalid(annotations, _invalid(annotations, stored_sizes(dataset)))
    return annotations


def read_annotations(dataset: Dataset, objects_column: str, box_format: BoxFormat = "xywh") -> Annotations:
    """Reads the annotations of a dataset in any of the usual layouts. The boxes are not checked.

    Raises:
        InvalidInputError: If the column lacks boxes or categories, or an annotation does not have a category.
    """
    check_dataset(dataset)
    stored = read_object_column(dataset, objects_column)
    stored_boxes = stored.fields[stored.boxes]
    all_boxes = numbers_of(stored_boxes)
    if box_format == "xyxy":
        all_boxes[:, 2:] -= all_boxes[:, :2]
    all_categories, names = _categories(stored)
    all_crowd = _crowds(stored)

    mapping = table_rows(dataset)
    lengths = stored.lengths[mapping]
    starts = np.concatenate([[0], np.cumsum(stored.lengths)[:-1]]).astype(np.int64) if len(stored.lengths) else mapping
    rows = np.repeat(np.arange(len(mapping)), lengths)
    places = np.repeat(starts[mapping] - np.cumsum(lengths) + lengths, lengths) + np.arange(len(rows))
    categories = all_categories[places]
    bad = np.flatnonzero((categories < 0) | (categories >= len(names) if names is not None else False))
    if bad.size:
        wanted = "from 0 up" if names is None else f"from 0 to {len(names) - 1}"
        raise InvalidInputError(
            f"row {rows[bad[0]]}, column {objects_column!r}, category",
            int(categories[bad[0]]),
            f"an id {wanted}",
            f"Remove boxes without a category ({bad.size} in total).",
        )
    fields = {
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(all_boxes.ravel()), 4),
        "category": pa.array(all_categories),
    }
    features: dict[str, Any] = {
        "bbox": List(Value("float64"), length=4),
        "category": Value("int64") if names is None else ClassLabel(names=names),
    }
    others = [name for name in stored.fields if name not in (stored.boxes, stored.categories)]
    column = ObjectColumn(
        stored.lengths,
        {**fields, **{name: stored.fields[name] for name in others}},
        {**features, **{name: stored.features[name] for name in others}},
        "bbox",
        "category",
    )
    return Annotations(rows, all_boxes[places], categories, all_crowd[places], names, stored_boxes, places, column)


def _categories(stored: ObjectColumn) -> tuple[np.ndarray, list[str] | None]:
    return ids_and_names(stored.fields[stored.categories], stored.features[stored.categories])


def _crowds(stored: ObjectColumn) -> np.ndarray:
    if "iscrowd" not in stored.fields:
        return np.zeros(int(stored.lengths.sum()), dtype=bool)
    return stored.fields["iscrowd"].cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)


def _invalid(annotations: Annotations, sizes: np.ndarray | None) -> dict[int, str]:
    """The boxes that cannot be used, with what is expected of them; `sizes` has the size of each row's image."""
    boxes, rows = annotations.boxes, annotations.rows
    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if sound.any() and boxes[sound].max() <= 1:
        raise _box_error(
            annotations,
            int(np.flatnonzero(sound)[0]),
            "(x, y, w, h) in pixels, but no box reaches beyond one pixel",
            "Multiply relative boxes by the width and height of the image.",
        )
    wrong = dict.fromkeys(np.flatnonzero(~sound).tolist(), "four finite numbers (x, y, w, h) with w, h > 0")
    if sizes is None:
        return wrong
    size = sizes[rows]
    with np.errstate(invalid="ignore"):
        outside = sound & ~((boxes[:, :2] < size) & (boxes[:, :2] + boxes[:, 2:] > 0)).all(axis=1)
        beyond = sound & (boxes[:, :2] + boxes[:, 2:] > size + 1).any(axis=1)
    if beyond.sum() * 2 > len(boxes):
        raise _box_error(
            annotations,
            int(np.flatnonzero(beyond)[0]),
            f"(x, y, w, h) in pixels, but {beyond.sum()} of {len(boxes)} boxes reach beyond their images",
            "If these are corners, pass box_format='xyxy' to prepare_boxes.",
        )
    for number in np.flatnonzero(outside).tolist():
        width, height = size[number]
        wrong[number] = f"a box in the image of {width:g}×{height:g} pixels"
    return wrong


def _refuse_invalid(annotations: Annotations, wrong: dict[int, str]) -> None:
    if wrong:
        these = f"these {len(wrong)} boxes" if len(wrong) > 1 else "this box"
        fix = f"Correct {these}, or drop invalid boxes with prepare_boxes(..., invalid='drop')."
        raise _box_error(annotations, min(wrong), wrong[min(wrong)], fix)


def _box_error(annotations: Annotations, number: int, expected: str, fix: str) -> InvalidBoxError:
    box = annotations.boxes[number].tolist()
    if np.isnan(box).all():  # not four numbers
        box = annotations.stored[int(annotations.places[number])].as_py()
    return InvalidBoxError(f"a box in row {annotations.rows[number]}", box, expected, fix)


def _renumbered(
    column: ObjectColumn, annotations: Annotations, objects_column: str, label2id: Mapping[str, int]
) -> ObjectColumn:
    """The annotations with the model's ids. Categories of the dataset keep the dataset's names."""
    highest = max(label2id.values())
    # `label2id` has only one of several ids that share a name ("N/A" for gaps).
    names = [f"LABEL_{class_id}" for class_id in range(highest + 1)]
    for model_name, class_id in label2id.items():
        names[class_id] = model_name
    if annotations.names is None:
        unknown = np.unique(annotations.categories[annotations.categories > highest]).tolist()
        if unknown:
            raise InvalidInputError(
                f"column {objects_column!r}, category",
                unknown,
                f"ids of the model, from 0 to {highest}",
                "Use the model's ids, or name the categories.",
            )
        return replace(column, features={**column.features, "category": ClassLabel(names=names)})
    used = sorted(set(annotations.categories.tolist()))
    ids = model_label_ids([annotations.names[k] for k in used], label2id)
    if ids is None:
        alone = [k for k in used if model_label_ids([annotations.names[k]], label2id) is None] or used
        raise PrivateInputError(
            f"column {objects_column!r}, category",
            [annotations.names[k] for k in alone],
            "names that mean one class of the model each, as `model.config.label2id` has them",
            f"Rename or remove the categories {alone[:_SHOWN]}.",
        )
    new_ids = np.full(len(annotations.names), -1, dtype=np.int64)
    new_ids[used] = ids
    for old_id, class_id in zip(used, ids, strict=True):
        names[class_id] = annotations.names[old_id]
    stored = column.fields["category"].to_numpy()
    # Rows that a selection leaves out may hold any value.
    known = (stored >= 0) & (stored < len(new_ids))
    numbered = np.where(known, new_ids[np.where(known, stored, 0)], -1)
    return replace(
        column,
        fields={**column.fields, "category": pa.array(numbered)},
        features={**column.features, "category": ClassLabel(names=names)},
    )


def _refuse_other_names(names: dict[Any, list[str] | None], objects_column: str) -> None:
    if len({tuple(found) if found is not None else None for found in names.values()}) > 1:
        raise PrivateInputError(
            f"column {objects_column!r}, category",
            names,
            "the same names in all splits, because their order determines the ids",
            "Pass label2id, for instance `model.config.label2id`.",
        )
