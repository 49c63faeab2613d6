"""Whether a batch has the labels by which its rows were chosen: a transform or a collator may have renumbered them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..errors import InvalidInputError
from .box_collation import DetectionCollator
from .box_columns import CATEGORY_KEYS, is_object_column
from .classes import read_labels
from .collation import label_name
from .rows import NamedRows, where

_LOOKED_AT = 32  # rows that are read before any work; decoding them takes a fraction of a second
_FIX = (
    "Store the numbers that the model has, with dataset.map or gs_lora_peft.data.align_labels, and leave the labels "
    "alone in the transform of the data set and in `data_collator`."
)


class AgreeingLabels:
    """
    A collator that refuses batches whose labels are not those by which the rows were chosen.

    Which rows are forgotten, which are replayed and what is scored is read from the stored label column, or from the
    rows of data sets without one. The model learns what the batch says. Where the two differ, another class is
    forgotten than was asked for.

    Args:
        collate (`Callable`): makes the batch; gets the rows as they come from [`NamedRows`].
        label_column (`str`): column of the labels, or of annotated boxes.

    Raises:
        InvalidInputError: when called, naming row and column. Labels that are not class ids pass, and so do those of a
            collator that gives more or fewer labels than rows.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], label_column: str):
        self.collate = collate
        self.label_column = label_column

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collate(list(rows))
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if labels is not None and len(labels) == len(rows):
            self._compare(rows, labels)
        return batch

    def _compare(self, rows: Sequence[Any], labels: Any) -> None:
        if isinstance(labels, torch.Tensor):
            if labels.ndim == 1 and not labels.is_floating_point():
                _compare(rows, _chosen_by(rows, self.label_column), [{label} for label in labels.tolist()], self)
        elif all(isinstance(label, Mapping) and "class_labels" in label for label in labels):
            chosen = _chosen_by(rows, self.label_column)
            if all(classes is not None for classes in chosen):
                # A transform may put objects of several images into one.
                together = set().union(*(classes or () for classes in chosen))
                _compare(rows, [together] * len(rows), [set(label["class_labels"].tolist()) for label in labels], self)


def check_given_labels(datasets: Mapping[str, Any], label_column: str, collate: Any) -> None:
    """Looks, before any work, at rows of several classes: what a transform gives must be the stored label.

    At most 32 rows of each are read, and none where there is no transform. [`AgreeingLabels`] looks at all the others.

    Args:
        datasets (`Mapping`): map-style data sets by what they are called in messages.
        label_column (`str`): column of the labels, or of annotated boxes.
        collate (`Callable`): the collator; annotated boxes are looked at if it is a [`DetectionCollator`].

    Raises:
        InvalidInputError: naming row and column, if they differ.
    """
    for name, dataset in datasets.items():
        _check_given(dataset, label_column, name, collate)


def _check_given(dataset: Any, label_column: str, name: str, collate: Any) -> None:
    if not isinstance(dataset, Dataset) or not _may_differ(dataset, label_column):
        return
    rows = NamedRows(dataset, name)
    if is_object_column(dataset, label_column):
        if isinstance(collate, DetectionCollator):
            for index in _spread(np.arange(len(dataset))):
                AgreeingLabels(collate, label_column)([rows[index]])
        return
    labels, _ = read_labels(dataset, label_column)
    chosen = [rows[index] for index in _spread(np.unique(labels, return_index=True)[1])]
    given = [_own_classes(row, label_column) for row in chosen]
    _compare(chosen, _chosen_by(chosen, label_column), given, AgreeingLabels(collate, label_column))


def _may_differ(dataset: Dataset, label_column: str) -> bool:
    """Whether rows may have another label than the stored one: there is a transform, or a format hides the column."""
    shown = dataset.format["columns"]
    return label_column in dataset.features and (dataset.format["type"] == "custom" or label_column not in shown)


def _spread(indices: np.ndarray) -> list[int]:
    """Some of the indices, from the first to the last."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), _LOOKED_AT)).astype(int)
    return [int(index) for index in indices[places]]


def _compare(
    rows: Sequence[Any], chosen: Sequence[set[int] | None], given: Sequence[set[int] | None], by: AgreeingLabels
) -> None:
    for number, (row, stored, found) in enumerate(zip(rows, chosen, given, strict=True)):
        if stored is not None and found is not None and not found <= stored:
            place = where(row, by.label_column, number)
            expected = f"{_shown(stored)}, by which rows are chosen to be forgotten or kept"
            raise InvalidInputError(f"the label given of {place}", _shown(found), expected, _FIX)


def _shown(classes: set[int]) -> Any:
    return next(iter(classes)) if len(classes) == 1 else sorted(classes)


def _chosen_by(rows: Sequence[Any], column: str) -> list[set[int] | None]:
    """The classes by which each row was chosen, `None` where that is not known."""
    found = [_own_classes(row, column) for row in rows]
    hidden: dict[int, tuple[NamedRows, list[int]]] = {}  # of each data set, the places of its rows in the batch
    for place, row in enumerate(rows):
        origin = getattr(row, "origin", None)
        if origin is not None and isinstance(origin[0].dataset, Dataset) and _may_differ(origin[0].dataset, column):
            hidden.setdefault(id(origin[0]), (origin[0], []))[1].append(place)
    for source, places in hidden.values():
        cells = source.stored(column, [rows[place].origin[1] for place in places])
        for place, cell in zip(places, cells, strict=True):
            found[place] = _classes(cell)
    return found


def _own_classes(row: Any, column: str) -> set[int] | None:
    name = label_name(row, column) if isinstance(row, Mapping) else None
    return None if name is None else _classes(row[name])


def _classes(cell: Any) -> set[int] | None:
    """The class ids in a cell: of a label, or of annotated boxes in either layout."""
    if isinstance(cell, (list, tuple)):
        parts = [_classes(item) for item in cell]
        return None if any(part is None for part in parts) else set().union(*(part or () for part in parts))
    if isinstance(cell, Mapping):
        name = next((name for name in CATEGORY_KEYS if name in cell), None)
        return None if name is None else _classes(cell[name])
    array = np.asarray(cell)
    return set(array.ravel().tolist()) if np.issubdtype(array.dtype, np.integer) else None
