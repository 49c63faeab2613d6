"""Splits of a dataset: for a request, for validation, for a protocol."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import InvalidInputError
from .boxes.annotations import read_annotations
from .boxes.box_splits import split_boxes, train_validation_boxes
from .boxes.columns import is_object_column
from .classes import read_labels
from .row_splits import ForgettingSplit, split_rows, train_validation_rows

# In this order: what is called a test is rather kept for the end than what is called a validation.
EVALUATION_SPLITS = ("test", "validation", "valid", "val", "evaluation", "eval", "dev")


def evaluation_split(splits: Iterable[str]) -> str | None:
    """
    The split to score on: the first there is of `test`, `validation`, `valid`, `val`, `evaluation`, `eval` and `dev`.

    Args:
        splits (`Iterable[str]`):
            Names of the splits, in upper or lower case.

    Returns:
        `str` or `None`: Its name as it was given; `None` where there is none of these.
    """
    by_name = {name.lower(): name for name in splits}
    return next((by_name[name] for name in EVALUATION_SPLITS if name in by_name), None)


def class_order(num_classes: int, seed: int = 1337) -> list[int]:
    """
    The classes in the order of the GS-LoRA papers' code: shuffled by Python's `random` with a seed.

    The first classes of the order stay to the end, the last ones are forgotten first.

    Args:
        num_classes (`int`):
            C.
        seed (`int`, *optional*, defaults to 1337):
            Theirs.

    Returns:
        `list[int]`: Every id from 0 to C − 1, once.
    """
    order = list(range(num_classes))
    random.Random(seed).shuffle(order)
    return order


def continual_protocol(num_classes: int, kept: Sequence[int], seed: int = 1337) -> list[list[int]]:
    """
    The classes that each task forgets, where so many are to be left after each (GS-LoRA, arXiv 2403.11530, §4).

    Args:
        num_classes (`int`):
            C, the classes that are known before the first task.
        kept (`Sequence[int]`):
            Numbers of classes left after each task, falling. 100-20, 80-20, 60-20 and 40-20 of the papers' tables are
            `[80, 60, 40, 20]`; their single step 100-5 is `[95]`.
        seed (`int`, *optional*, defaults to 1337):
            As in [`class_order`].

    Returns:
        `list[list[int]]`: The ids to forget, one list for each task.

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
        expected = f"numbers of classes that fall from below the {num_classes} that are known"
        raise InvalidInputError("kept", list(kept), expected, "Take for instance [80, 60, 40, 20] of 100.")
    if bounds[-1] < 1:
        raise InvalidInputError("kept", list(kept), "one class at least to be left", "Raise the last number.")
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
    """Takes a dataset apart for one forgetting task.

    Classes are given by `ClassLabel` name or by id; a column of plain integers knows ids alone. Which rows of a class
    are drawn depends on `seed` and the rows' places only, not on the request: a class keeps its replayed rows from
    task to task, and a smaller draw is part of a larger one.

    Stored labels decide, no transform is run: `GSLoraTrainer` refuses rows to which a transform gives another label.

    A column of annotated boxes, several categories in one row, is split as [`split_boxes`] says: an image with objects
    of both kinds is in both parts, with the annotations of both.

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
            The classes to replay. Classes named nowhere are then left out.
        replay_ratio (`float`, *optional*, defaults to 1.0):
            The share in (0, 1] of each retained class's rows that goes into D_r, rounded half up, one row at least.
        shots (`int`, *optional*):
            Take exactly so many rows of every class to forget and of every class to retain.
        seed (`int`, *optional*, defaults to 1337):
            Decides which rows `replay_ratio` and `shots` draw.

    Returns:
        [`ForgettingSplit`]: The four parts and the roles of the classes.

    Raises:
        InvalidBoxError: A box has no area, is not finite or lies outside its image.
        UnknownClassError: A name or id that the labels do not have.
        ValueError: No class to forget, or none left to retain; a class with two roles; a class to forget or to retain
            without rows, or with fewer than `shots`; a dataset, column or label that cannot be split; settings out of
            range, or `replay_ratio` together with `shots`.

    Example:
    ```python
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
    """Takes a validation part out of training data, the same share of every class.

    Args:
        dataset (`datasets.Dataset`):
            One row for each sample.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row, or with annotated boxes (see [`prepare_boxes`]).
        fraction (`float`, *optional*, defaults to 0.1):
            The share in (0, 1) of each class that goes into the validation part, rounded half up. One row of each
            class stays in the training part whatever the share.
        seed (`int`, *optional*, defaults to 1337):
            Decides which rows are taken.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The training part and the validation part, both in the order of.
        the dataset.

    Raises:
        ValueError: The fraction or the seed is out of range, the column or a label cannot be used, or every class is
            too small to give a row.
    """
    split = train_validation_boxes if is_object_column(dataset, label_column) else train_validation_rows
    return split(dataset, label_column, fraction, seed)


def read_classes(dataset: Any, column: str) -> tuple[np.ndarray, list[str] | None]:
    """The class of every row, or of every annotated box, int64, and the names of the classes where they have any.

    Raises:
        ValueError: There is no such column, or a row or a box in it has no class.
    """
    if is_object_column(dataset, column):
        annotations = read_annotations(dataset, column)
        return annotations.categories, annotations.names
    return read_labels(dataset, column)
