"""Aligning the class ids of a dataset with those of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from ..errors import InvalidInputError, PrivateInputError
from .classes import ids_by_name, label_names, names_of_model, read_labels

ALIGN = "`gs_lora_peft.data.align_labels` or `dataset.align_labels_with_mapping`"

_PLACEHOLDER = re.compile(r"LABEL_\d+", re.ASCII)  # the name that libraries give to unnamed classes

Data = TypeVar("Data", Dataset, DatasetDict)


def is_placeholder(name: str) -> bool:
    """Whether a name is a placeholder for an unnamed class, such as `LABEL_3`."""
    return _PLACEHOLDER.fullmatch(name) is not None


def same_class(name: str, model_name: str) -> bool:
    """Whether a dataset's and a model's name may mean the same class.

    They do if they differ only in letter case, or if the first is one of the model's synonyms, which commas separate
    ("tench, Tinca tinca"). A placeholder such as `LABEL_3`, and a number compared with a word, may mean any class.
    """
    unnamed = is_placeholder(name) or is_placeholder(model_name)
    if unnamed or name.isdecimal() != model_name.isdecimal():
        return True
    return name.casefold() == model_name.casefold() or _folded(name) in _synonyms(model_name)


def check_names(names: Sequence[str] | None, model: Any, where: str, fix: str = ALIGN) -> None:
    """Refuses labels with other class names than the model's.

    Args:
        names (`Sequence[str]` or `None`):
            `names[i]` is the dataset's name of class `i`; `None` for classes without names.
        model (`torch.nn.Module`):
            A model, with or without a `config` that names its classes in `id2label`.
        where (`str`):
            What the names belong to, for the error.
        fix (`str`, *optional*):
            The function that aligns such data with the model.

    Raises:
        InvalidInputError: If a class of the dataset has the id of another class of the model.
    """
    of_models = names_of_model(model)
    times = Counter(of_models.values())
    for class_id, name in enumerate(names or ()):
        of_model = of_models.get(class_id)
        # Several classes with one name are gaps, as in COCO's ids ("N/A").
        if of_model is not None and times[of_model] == 1 and not same_class(name, of_model):
            raise PrivateInputError(
                f"{where}: class {class_id}",
                name,
                f"the name in `model.config.id2label[{class_id}]`",
                f"Align the ids with the model's by {fix}. If only the spelling differs, cast the column to a "
                "ClassLabel with the model's names.",
            )


def model_label_ids(names: Sequence[str], label2id: Mapping[Any, Any]) -> list[int] | None:
    """The model's ids of a dataset's classes.

    Args:
        names (`Sequence[str]`):
            The dataset's class names.
        label2id (`Mapping[str, int]`):
            `model.config.label2id`. A name may list synonyms, separated by commas.

    Returns:
        `list[int]` or `None`: One id for each name; `None` if the model does not have one of the names, if a synonym
        belongs to several of its classes, or if two names mean the same class.

    Example:
        ```py
        >>> model_label_ids(["church", "tench"], {"tench, Tinca tinca": 0, "church, church building": 497})
        [497, 0]
        ```
    """
    whole: dict[str, set[int]] = {}
    synonyms: dict[str, set[int]] = {}
    for model_name, class_id in ids_by_name(label2id).items():
        whole.setdefault(_folded(model_name), set()).add(class_id)
        for synonym in _synonyms(model_name):
            synonyms.setdefault(synonym, set()).add(class_id)
    found = [whole.get(_folded(name)) or synonyms.get(_folded(name), set()) for name in names]
    if any(len(ids) != 1 for ids in found) or len(set().union(*found)) != len(names):
        return None
    return [class_id for ids in found for class_id in ids]


def align_labels(dataset: Data, label_column: str, label2id: Mapping[Any, Any]) -> Data:
    """Gives the classes of a dataset the ids that they have in a model. Only the label column is read.

    Unlike `Dataset.align_labels_with_mapping`, it understands synonyms (see [`model_label_ids`]). The new `ClassLabel`
    has all classes of the model. Classes of the dataset keep the dataset's spelling, so that a request names "tench"
    instead of "tench, Tinca tinca".

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`):
            A dataset whose label column is a `ClassLabel`.
        label_column (`str`):
            The column with one class for each row.
        label2id (`Mapping[str, int]`):
            `model.config.label2id`; ids may be text ("0"), and an `id2label` is inverted.

    Returns:
        `datasets.Dataset` or `datasets.DatasetDict`: The dataset with the model's ids; the same object if they are
        already aligned.

    Raises:
        InvalidInputError: If the column is not a `ClassLabel`; if a row does not have a label; if a name does not mean
            exactly one class of the model; or if two names mean the same class.
    """
    if isinstance(dataset, dict):
        return DatasetDict({split: align_labels(part, label_column, label2id) for split, part in dataset.items()})
    label2id = ids_by_name(label2id)
    labels, names = read_labels(dataset, label_column)
    if names is None:
        found, fix = dataset.features[label_column], "Cast it with `dataset.cast_column`."
        raise InvalidInputError(f"column {label_column!r}", found, "a ClassLabel, which has names", fix)
    ids = model_label_ids(names, label2id)
    if ids is None:
        raise _not_aligned(names, label_column, label2id)
    # `label2id` has only one of several classes that share a name.
    all_names = [f"LABEL_{class_id}" for class_id in range(max(label2id.values()) + 1)]
    for model_name, class_id in label2id.items():
        all_names[class_id] = model_name
    for number, class_id in enumerate(ids):
        all_names[class_id] = names[number]
    if all_names == names:
        return dataset
    columns, feature = dataset.column_names, ClassLabel(names=all_names)
    # `map` would rewrite every image. The new column comes first: a table without columns loses its rows.
    renumbered, new = np.asarray(ids, dtype=np.int64)[labels], f"new {label_column}"
    aligned = dataset.add_column(new, renumbered, feature=feature).remove_columns(label_column)
    return aligned.rename_column(new, label_column).select_columns(columns)


def align_known_labels(dataset: Data, label_column: str, label2id: Mapping[Any, Any]) -> Data:
    """Calls [`align_labels`] if the model has every class name of the dataset; else returns the dataset as it is.

    Labels without names, or with names of other classes, count as the model's ids.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`):
            The dataset. The first split of a `DatasetDict` has the names.
        label_column (`str`):
            The column with one class for each row.
        label2id (`Mapping[str, int]`):
            `model.config.label2id`; ids may be text ("0"), and an `id2label` is inverted.

    Returns:
        `datasets.Dataset` or `datasets.DatasetDict`: The dataset with the model's ids, or the same object.

    Raises:
        InvalidInputError: If the dataset lacks the column, or a row does not have a label.
    """
    split = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    names = label_names(split, label_column)
    if names is None or model_label_ids(names, label2id) is None:
        return dataset
    return align_labels(dataset, label_column, label2id)


def _not_aligned(names: Sequence[str], label_column: str, label2id: Mapping[str, int]) -> InvalidInputError:
    """The error for names of a dataset that are not one class of the model each."""
    ids = {number: model_label_ids([name], label2id) for number, name in enumerate(names)}
    expected = "names that mean one class of the model each, as `model.config.label2id` has them"
    where = f"column {label_column!r}"
    if unknown := [number for number, found in ids.items() if found is None]:
        fix = f"Rename the classes {unknown}, or use a model that has them."
        return PrivateInputError(where, [names[number] for number in unknown], expected, fix)
    same: dict[int, list[int]] = {}
    for number, found in ids.items():
        same.setdefault((found or [0])[0], []).append(number)
    shared = {class_id: alike for class_id, alike in same.items() if len(alike) > 1}
    return InvalidInputError(
        where,
        "; ".join(f"{alike}, all of the model's class {class_id}" for class_id, alike in shared.items()),
        expected,
        "Merge these classes, or rename those that mean another class.",
    )


def _folded(name: str) -> str:
    return name.strip().casefold()


def _synonyms(model_name: str) -> list[str]:
    return [_folded(part) for part in model_name.split(",")]
