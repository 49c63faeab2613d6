"""Annotated boxes: the usual layouts read as one, checked, and numbered as the model numbers its categories.

Everything here works on the annotations and at most the headers of the images: no pixel is decoded, no transform run.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from .alignment import model_label_ids
from .box_columns import ObjectColumn, named, numbers_of, read_object_column, replaced, table_rows
from .classes import check_dataset
from .image_sizes import header_sizes, stored_sizes
from .label_maps import ids_by_name

Data = TypeVar("Data", Dataset, DatasetDict)
BoxFormat = Literal["xywh", "xyxy"]

_SHOWN = 10  # at most so many names are listed in a message


class InvalidBoxError(ValueError):
    """A box has no area, is not four finite numbers, or lies outside its image."""


@dataclass(frozen=True)
class Annotations:
    """
    The annotations of a dataset's images, one behind the other in the order of its rows.

    Attributes:
        rows (`np.ndarray` of shape `(n,)`, int64): row of the dataset.
        boxes (`np.ndarray` of shape `(n, 4)`, float64): (x, y, w, h) in pixels.
        categories (`np.ndarray` of shape `(n,)`, int64): category id.
        crowd (`np.ndarray` of shape `(n,)`, bool): regions of many objects, which are not training samples.
        names (`list[str]` or `None`): names of the categories by id.
        stored (`pyarrow.Array`): every box of `column` as it was stored, not always of four numbers.
        places (`np.ndarray` of shape `(n,)`, int64): where the annotation stands in `column`.
        column ([`ObjectColumn`]): the same annotations as they are stored, as `bbox`, `category` and what else there
            is; with those of rows that the dataset has left out.
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
    invalid: Literal["raise", "drop"] = "raise",
) -> Data:
    """Brings annotated boxes into the one layout that splitting, collating and scoring read, and checks them.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): One row for each image. Its column of annotations is a
            struct of lists or a list of structs. Boxes are called `bbox`, `bboxes` or `boxes`, categories `category`,
            `categories`, `category_id`, `label` or `labels`: a `ClassLabel`, names, or ids. Boxes are
            compared with the columns `width` and `height`; without these with the headers of the images in `image`
            (or the only column of them), as far as they are in the dataset or in local files. Other images are not
            compared.
        objects_column (`str`, *optional*, defaults to `"objects"`): The column of annotations.
        label2id (`Mapping[str, int]`, *optional*): `model.config.label2id`, to number the categories as the model
            does; ids may be text ("0"). A name may list synonyms, separated by commas. Without it names are numbered
            in their own order, and categories that have ids keep them.
        box_format (`str`, *optional*, defaults to `"xywh"`): What the boxes are now: `"xywh"` (left, top, width,
            height, as COCO has them) or `"xyxy"` (left, top, right, bottom), in pixels.
        invalid (`str`, *optional*, defaults to `"raise"`): What happens to boxes without area, with values that are
            not finite, or wholly outside their image: `"raise"`, or `"drop"` these annotations. COCO has a few. Boxes
            that reach beyond the image stay; image processors cut them off.

    Returns:
        `datasets.Dataset` or `datasets.DatasetDict`: The dataset with `objects_column` as a struct of lists: `bbox`
        (x, y, w, h), `category` (a `ClassLabel` where there are names) and every other field there was.

    Raises:
        InvalidBoxError: `invalid="raise"` and there are such boxes; or most boxes reach beyond their images, as
            corners taken for sizes do, or none beyond one pixel, as shares of the image do.
        ValueError: There are no boxes or categories in the column, an annotation has no category, or the model does
            not know one.

    Example:

    ```python
    >>> dataset = prepare_boxes(load_dataset("cppe-5"), label2id=model.config.label2id, invalid="drop")
    ```
    """
    for name, value, allowed in (
        ("box_format", box_format, ("xywh", "xyxy")),
        ("invalid", invalid, ("raise", "drop")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}.")
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
    """The annotations of a dataset, all of them fit for training.

    Raises:
        InvalidBoxError: A box has no area, is not finite or lies outside its image, by the columns `width` and
            `height` alone: the headers of the images are read once, by [`prepare_boxes`].
        ValueError: see [`prepare_boxes`].
    """
    annotations = read_annotations(dataset, objects_column)
    _refuse_invalid(annotations, _invalid(annotations, stored_sizes(dataset)))
    return annotations


def read_annotations(dataset: Dataset, objects_column: str, box_format: BoxFormat = "xywh") -> Annotations:
    """The annotations of a dataset whichever of the usual layouts they have. The boxes are not checked.

    Raises:
        ValueError: There are no boxes or categories in the column, or an annotation has no category.
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
        wanted = "ids from 0 up" if names is None else f"ids from 0 to {len(names) - 1}"
        raise ValueError(
            f"{objects_column!r} holds the category {categories[bad[0]]} in row {rows[bad[0]]} (and {bad.size - 1} "
            f"more); expected {wanted} for every box. Remove boxes without a category."
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
    return named(stored.fields[stored.categories], stored.features[stored.categories])


def _crowds(stored: ObjectColumn) -> np.ndarray:
    if "iscrowd" not in stored.fields:
        return np.zeros(int(stored.lengths.sum()), dtype=bool)
    return stored.fields["iscrowd"].cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)


def _invalid(annotations: Annotations, sizes: np.ndarray | None) -> dict[int, str]:
    """Which annotations have a box that cannot be used, and why; `sizes` are those of each row's image, if known."""
    boxes, rows = annotations.boxes, annotations.rows
    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if sound.any() and boxes[sound].max() <= 1:
        raise InvalidBoxError(
            f"no box reaches beyond one pixel, the first {_shown(annotations, sound)}; expected (x, y, w, h) in "
            "pixels. Multiply shares of the image by its width and height."
        )
    wrong = dict.fromkeys(np.flatnonzero(~sound).tolist(), "expected four finite numbers (x, y, w, h) with w, h > 0")
    if sizes is None:
        return wrong
    size = sizes[rows]
    with np.errstate(invalid="ignore"):
        outside = sound & ~((boxes[:, :2] < size) & (boxes[:, :2] + boxes[:, 2:] > 0)).all(axis=1)
        beyond = sound & (boxes[:, :2] + boxes[:, 2:] > size + 1).any(axis=1)
    if beyond.sum() * 2 > len(boxes):
        raise InvalidBoxError(
            f"{beyond.sum()} of {len(boxes)} boxes reach beyond their images, the first {_shown(annotations, beyond)}"
            "; expected (x, y, w, h) in pixels. If these are corners, give prepare_boxes box_format='xyxy'."
        )
    for number in np.flatnonzero(outside).tolist():
        width, height = size[number]
        wrong[number] = f"expected boxes in the image of {width:g}×{height:g} pixels"
    return wrong


def _refuse_invalid(annotations: Annotations, wrong: dict[int, str]) -> None:
    if wrong:
        first = min(wrong)
        only = np.arange(len(annotations.rows)) == first
        raise InvalidBoxError(
            f"{len(wrong)} boxes cannot be used, the first {_shown(annotations, only)}; {wrong[first]}. Correct them, "
            "or leave them out with prepare_boxes(..., invalid='drop')."
        )


def _shown(annotations: Annotations, which: np.ndarray) -> str:
    first = int(np.flatnonzero(which)[0])
    box = annotations.boxes[first].tolist()
    if np.isnan(box).all():  # not four numbers
        box = annotations.stored[int(annotations.places[first])].as_py()
    return f"{reprlib.repr(box)} in row {annotations.rows[first]}"


def _renumbered(
    column: ObjectColumn, annotations: Annotations, objects_column: str, label2id: Mapping[str, int]
) -> ObjectColumn:
    """The annotations with the model's ids, and its names where the dataset has none of its own for them."""
    highest = max(label2id.values())
    # A model that gives several ids one name ("N/A" for gaps) has only one of them in `label2id`.
    names = [f"LABEL_{class_id}" for class_id in range(highest + 1)]
    for model_name, class_id in label2id.items():
        names[class_id] = model_name
    if annotations.names is None:
        unknown = np.unique(annotations.categories[annotations.categories > highest]).tolist()
        if unknown:
            raise ValueError(
                f"{objects_column!r} holds the categories {unknown[:_SHOWN]}; expected ids of the model, from 0 to "
                f"{highest}. Renumber them, or give them names."
            )
        return replace(column, features={**column.features, "category": ClassLabel(names=names)})
    used = sorted(set(annotations.categories.tolist()))
    ids = model_label_ids([annotations.names[k] for k in used], label2id)
    if ids is None:
        alone = [annotations.names[k] for k in used if model_label_ids([annotations.names[k]], label2id) is None]
        raise ValueError(
            f"{objects_column!r} has the categories {(alone or annotations.names)[:_SHOWN]}, which are not each one "
            f"class of the model; expected names out of {list(label2id)[:_SHOWN]}. Rename them, or leave them out."
        )
    new_ids = np.full(len(annotations.names), -1, dtype=np.int64)
    new_ids[used] = ids
    for old_id, class_id in zip(used, ids, strict=True):
        names[class_id] = annotations.names[old_id]
    stored = column.fields["category"].to_numpy()
    # Rows that the dataset has left out may hold anything.
    known = (stored >= 0) & (stored < len(new_ids))
    numbered = np.where(known, new_ids[np.where(known, stored, 0)], -1)
    return replace(
        column,
        fields={**column.fields, "category": pa.array(numbered)},
        features={**column.features, "category": ClassLabel(names=names)},
    )


def _refuse_other_names(names: dict[Any, list[str] | None], objects_column: str) -> None:
    if len({tuple(found) if found is not None else None for found in names.values()}) > 1:
        raise ValueError(
            f"the splits have other categories in {objects_column!r}: {names}; expected the same in all, because they "
            "are numbered in the order of their names. Pass label2id, for instance `model.config.label2id`."
        )
