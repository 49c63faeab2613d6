"""Splits of a dataset for a request and for validation, and the class order of the papers' protocol."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import InvalidInputError
from .boxes.annotations import read_annotations
from .boxes.box_splits import remove_box_classes, split_boxes, train_validation_boxes
from .boxes.columns import is_object_column
from .classes import read_labels, resolve_classes
from .row_splits import ForgettingSplit, split_rows, train_validation_rows

# In order of preference: a test split is more likely to be held out than a validation split.
EVALUATION_SPLITS = ("test", "validation", "valid", "val", "evaluation", "eval", "dev")


def evaluation_split(splits: Iterable[str]) -> str | None:
    """Picks the split to score on: the first of `test`, `validation`, `valid`, `val`, `evaluation`, `eval` and `dev`.

    Args:
        splits (`Iterable[str]`):
            Names of the splits, in upper or lower case.

    Returns:
        `str` or `None`: The name, spelled as in `splits`; `None` if `splits` has none of these names.
    """
    by_name = {name.lower(): name for name in splits}
    return next((by_name[name] for name in EVALUATION_SPLITS if name in by_name), None)


def class_order(num_classes: int, seed: int = 1337) -> list[int]:
    """The classes in the order of the GS-LoRA papers' code, which shuffles them with Python's `random`.

    The last classes of the order are forgotten first, and the first ones are kept.

    Args:
        num_classes (`int`):
            C.
        seed (`int`, *optional*, defaults to 1337):
            Seed of the shuffle. The default is the seed of the papers' code.

    Returns:
        `list[int]`: Every id from 0 to C − 1, once.
    """
    order = list(range(num_classes))
    random.Random(seed).shuffle(order)
    return order


def continual_protocol(num_classes: int, kept: Sequence[int], seed: int = 1337) -> list[list[int]]:
    """The classes that each task forgets in the papers' protocol (GS-LoRA, https://arxiv.org/abs/2403.11530, §4).

    Args:
        num_classes (`int`):
            C, the number of classes before the first task.
        kept (`Sequence[int]`):
            Numbers of classes left after each task, in falling order. 100-20, 80-20, 60-20 and 40-20 in the papers'
            tables are `[80, 60, 40, 20]`; their single step 100-5 is `[95]`.
        seed (`int`, *optional*, defaults to 1337):
            As in [`class_order`].

    Returns:
        `list[list[int]]`: Ids to forget, one list for each task.

    Raises:
        InvalidInputError: If the numbers do not fall from below C to at least 1.

    Example:
        ```py
        >>> continual_protocol(6, kept=[4, 2])
        [[5, 4], [3, 2]]
        ```
    """
    bounds = [num_classes, *kept]
    whole = all(isinstance(number, Integral) for number in bounds)
    if len(bounds) < 2 or not whole or any(later >= earlier for earlier, later in zip(bounds, kept, strict=False)):
        expected = f"falling numbers of classes, all below {num_classes}"
        raise InvalidInputError("kept", list(kept), expected, "Take for instance [80, 60, 40, 20] of 100.")
    if bounds[-1] < 1:
        raise InvalidInputError("kept", list(kept), "at least one class to be left", "Raise the last number.")
    order = class_order(num_classes, seed)
    return [order[left:known] for known, left in zip(bounds, kept, strict=False)]


def split_dataset(
    dataset: Dataset,
    forget: Sequence[str | int],
    *,
    label_column: str = "label",
    old: Sequence[str | int] = (),
    missing: Sequence[str | int] = (),
    retain: Sequence[str | int] | None = None,
    replay_ratio: float = 1.0,
    shots: int | None = None,
    seed: int = 1337,
) -> ForgettingSplit:
    """Splits a dataset for one forgetting task.

    A request names classes by `ClassLabel` name or by id. A column of plain integers only has ids. The rows drawn from
    a class depend on `seed` and the rows' places, not on the request: a class keeps its replayed rows from task to
    task, and a smaller draw is part of a larger one.

    The split reads the stored labels and does not run a transform. `GSLoraTrainer` refuses rows to which a transform
    gives another label.

    [`split_boxes`] describes how a column of annotated boxes, with several categories in one row, is split. An image
    with objects of both kinds is in both parts, with the annotations of both.

    Args:
        dataset (`datasets.Dataset`):
            One row for each sample.
        forget (`Sequence[str | int]`):
            The classes to forget.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row, or with annotated boxes (see [`prepare_boxes`]).
        old (`Sequence[str | int]`, *optional*, defaults to none):
            Classes that earlier tasks forgot. They are in neither D_f nor D_r and need not have rows.
        missing (`Sequence[str | int]`, *optional*, defaults to none):
            Classes to keep although none of their data is replayed. They need not have rows.
        retain (`Sequence[str | int]`, *optional*, defaults to every other class that has rows):
            The classes to replay. Classes without a role are then left out.
        replay_ratio (`float`, *optional*, defaults to 1.0):
            The share in (0, 1] of each retained class's rows in D_r, rounded half up, at least one row.
        shots (`int`, *optional*):
            Exact number of rows to take from every class to forget or to retain.
        seed (`int`, *optional*, defaults to 1337):
            Seed of the draw by `replay_ratio` and `shots`.

    Returns:
        [`ForgettingSplit`]: The four parts and the roles of the classes.

    Raises:
        InvalidBoxError: If a box does not have an area, is not finite or lies outside its image.
        UnknownClassError: If the labels do not have a name or id.
        InvalidInputError: If there is no class to forget or to retain; if a class has two roles; if a class to forget
            or to retain does not have rows, or fewer than `shots`; if the dataset, the column or a label cannot be
            split; or if a setting is out of range, or both `replay_ratio` and `shots` are set.

    Example:
        ```py
        >>> split = split_dataset(dataset, forget=["tench", "cassette player"], replay_ratio=0.1)
        >>> split.forget_classes
        [0, 482]
        ```
    """
    settings: dict[str, Any] = {
        "old": old,
        "missing": missing,
        "retain": retain,
        "replay_ratio": replay_ratio,
        "shots": shots,
        "seed": seed,
    }
    if is_object_column(dataset, label_column):
        return split_boxes(dataset, forget, objects_column=label_column, **settings)
    return split_rows(dataset, forget, label_column=label_column, **settings)


def train_validation_split(
    dataset: Dataset, label_column: str = "label", fraction: float = 0.1, seed: int = 1337
) -> tuple[Dataset, Dataset]:
    """Splits a validation part off the training data, with the same share of every class.

    Args:
        dataset (`datasets.Dataset`):
            One row for each sample.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row, or with annotated boxes (see [`prepare_boxes`]).
        fraction (`float`, *optional*, defaults to 0.1):
            The share in (0, 1) of each class in the validation part, rounded half up. At least one row of each class
            stays in the training part.
        seed (`int`, *optional*, defaults to 1337):
            Seed of the draw.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The training part and the validation part, both in the order of
        the dataset.

    Raises:
        InvalidInputError: If the fraction or the seed is out of range, the column or a label cannot be used, or every
            class is too small.
    """
    split = train_validation_boxes if is_object_column(dataset, label_column) else train_validation_rows
    return split(dataset, label_column, fraction, seed)


def remove_classes(dataset: Dataset, classes: Sequence[str | int], label_column: str = "label") -> Dataset:
    """Removes classes from a dataset, as if nobody had labelled them.

    Of a column with one class for each row, the rows of the classes are removed. Of a column of annotated boxes, their
    annotations are removed (crowds too) and all images stay, so that their objects count as background. The names and
    ids of the classes stay as they are.

    Args:
        dataset (`datasets.Dataset`):
            One row for each sample.
        classes (`Sequence[str | int]`):
            The classes to remove, by name or id. They need not have rows.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row, or with annotated boxes (see [`prepare_boxes`]).

    Returns:
        `datasets.Dataset`: The other rows, or all images with the other boxes, in the order of the dataset.

    Raises:
        UnknownClassError: If the labels do not have a name.
        InvalidInputError: If there are no classes to remove, or nothing is left; or if the column cannot be used.
    """
    labels, names = read_classes(dataset, label_column)
    removed = resolve_classes(classes, names=names)
    if np.isin(labels, removed).all():
        fix = "Remove fewer classes."
        raise InvalidInputError("classes", list(classes), "classes besides which others have data", fix)
    if is_object_column(dataset, label_column):
        return remove_box_classes(dataset, removed, label_column)
    return dataset.select(np.flatnonzero(~np.isin(labels, removed)))


def read_classes(dataset: Dataset, column: str) -> tuple[np.ndarray, list[str] | None]:
    """The class of every row, or of every annotated box, int64, and the names of the classes, if they have names.

    Raises:
        InvalidInputError: If the dataset lacks the column, or a row or a box does not have a class.
    """
    if is_object_column(dataset, column):
        annotations = read_annotations(dataset, column)
        return annotations.categories, annotations.names
    return read_labels(dataset, column)
