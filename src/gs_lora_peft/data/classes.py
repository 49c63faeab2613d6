"""The classes of a dataset and a model: names, ids, and the label of every row."""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, Value
from pydantic import BeforeValidator, Field

from ..checking import Text, Whole, checked, ordered_list
from ..errors import InvalidInputError


def ids_by_name(mapping: Mapping[Any, Any], argument: str = "label2id") -> dict[str, int]:
    """`label2id` with whole numbers for ids.

    Args:
        mapping (`Mapping`):
            Names with their ids, as whole numbers or as text ("0"); or an `id2label`, which is turned around.
        argument (`str`, *optional*, defaults to `"label2id"`):
            What it is called in messages.

    Raises:
        InvalidInputError: If it is not a mapping, or an id is not a whole number from 0 up.

    Example:
        ```py
        >>> ids_by_name({"cat": "0", "dog": "1"})
        {'cat': 0, 'dog': 1}
        ```
    """
    pairs = _pairs(mapping, argument)
    if all(_id(class_id) is not None for _, class_id in pairs):
        return {str(name): _id(class_id) for name, class_id in pairs}  # type: ignore[misc]
    if all(_id(class_id) is not None for class_id, _ in pairs):
        return {str(name): _id(class_id) for class_id, name in pairs}  # type: ignore[misc]
    raise _refusal(argument, next(class_id for _, class_id in pairs if _id(class_id) is None))


def names_by_id(mapping: Mapping[Any, Any], argument: str = "id2label") -> dict[int, str]:
    """`id2label` with whole numbers for ids; several ids may share a name.

    Args:
        mapping (`Mapping`):
            Ids, as whole numbers or as text ("0"), with their names; or a `label2id`, which is turned around.
        argument (`str`, *optional*, defaults to `"id2label"`):
            What it is called in messages.

    Raises:
        InvalidInputError: If it is not a mapping, or an id is not a whole number from 0 up.
    """
    pairs = _pairs(mapping, argument)
    if all(_id(class_id) is not None for class_id, _ in pairs):
        return {_id(class_id): str(name) for class_id, name in pairs}  # type: ignore[misc]
    if all(_id(class_id) is not None for _, class_id in pairs):
        return {_id(class_id): str(name) for name, class_id in pairs}  # type: ignore[misc]
    raise _refusal(argument, next(class_id for class_id, _ in pairs if _id(class_id) is None))


def names_of_model(model: Any) -> dict[int, str]:
    """What a model calls its classes, by id; empty where its configuration does not say, or names none."""
    mapping = getattr(getattr(model, "config", None), "id2label", None)
    return names_by_id(mapping, "model.config.id2label") if mapping else {}


def _pairs(mapping: Any, argument: str) -> list[tuple[Any, Any]]:
    if not isinstance(mapping, Mapping):
        raise _refusal(argument, mapping)
    return list(mapping.items())


def _id(value: Any) -> int | None:
    """The id that a value is or writes."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else None
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    return found if found is not None and found >= 0 else None


def _refusal(argument: str, value: Any) -> InvalidInputError:
    expected = "class names and their ids, whole numbers from 0 up"
    return InvalidInputError(argument, value, expected, "Give `model.config.label2id`.")


_SHOWN = 10  # at most so many names or ids are listed in a message


_NEAREST = 3


# An id that no class can have is an unknown class, as any other that is out of range.
_REQUESTED = Annotated[
    list[Annotated[Text | Whole, Field(description="a class name (text) or a class id (a whole number)")]],
    BeforeValidator(ordered_list),
    Field(min_length=1, description="a list of class names or ids, one at least"),
]


class UnknownClassError(InvalidInputError):
    """Classes were asked for that the labels do not have: `value` lists them."""

    def __init__(self, name: str, value: list[str | int], expected: str, fix: str = ""):
        super().__init__(name, value, expected, fix)
        self.args = (f"`{name}`: unknown classes: {', '.join(map(repr, value))}; expected {expected}. {fix}".rstrip(),)


def resolve_classes(
    requested: Sequence[str | int],
    *,
    names: Sequence[str] | Mapping[Any, Any] | None,
    num_classes: int | None = None,
    name: str = "classes",
) -> list[int]:
    """Turns class names and ids into ids.

    A string is a name first: it must match exactly, letter case included. Only where no class has that name, a string
    that writes a whole number ("3") is taken for an id. Where class names are such numbers, as those of folders
    often are, it never is: the class with that name may be absent.

    Args:
        requested (`Sequence[str | int]`):
            Names or ids of one or more classes, each class once.
        names (`Sequence[str]` or `Mapping`, *optional*):
            `names[i]` is the name of class `i`; or a model's `id2label` or `label2id`, whose ids may be text ("0").
            `None` where classes have ids alone.
        num_classes (`int`, *optional*, defaults to the number of `names`):
            Ids go from 0 to `num_classes - 1`. Without names and without this number every id from 0 up is accepted.
        name (`str`, *optional*, defaults to `"classes"`):
            What the argument is called, for errors.

    Returns:
        `list[int]`: The ids, in the order asked for.

    Raises:
        UnknownClassError: A name that no class has (the message offers the nearest ones), or an id out of range.
        InvalidInputError: Nothing was asked for; an item is neither a name nor an id; two items mean the same class;
            two classes share the name asked for; or `names` and `num_classes` disagree.

    Example:
    ```python
    >>> resolve_classes(["tench", 2], names=["tench", "golf ball", "church"])
    [0, 2]
    ```
    """
    items = checked(name, requested, _REQUESTED)
    names, num_classes = _checked_label_space(names, num_classes)
    ids_of_name: dict[str, list[int]] = {}
    for class_id, label in enumerate(names or ()):
        ids_of_name.setdefault(label, []).append(class_id)

    numbers_are_names = any(_written_id(label) is not None for label in ids_of_name)

    ids: list[int] = []
    unknown: list[str | int] = []
    for place, item in enumerate(items):
        if isinstance(item, str) and item in ids_of_name:
            if len(ids_of_name[item]) > 1:
                expected = f"the name of one class; those with the ids {ids_of_name[item]} have this one"
                raise InvalidInputError(f"{name}[{place}]", item, expected, "Ask for the id that is meant.")
            ids.append(ids_of_name[item][0])
            continue
        written = item if not isinstance(item, str) else None if numbers_are_names else _written_id(item)
        if written is not None and written >= 0 and (num_classes is None or written < num_classes):
            ids.append(written)
        else:
            unknown.append(item)
    if unknown:
        raise UnknownClassError(name, unknown, describe_label_space(names, num_classes), _hint(unknown, names))
    _refuse_repeats(name, items, ids)
    return ids


def label_names(dataset: Any, label_column: str = "label") -> list[str] | None:
    """The names of the classes in a label column.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Only its features are looked at, no row is read.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row.

    Returns:
        `list[str]` or `None`: `names[i]` is the name of class `i`; `None` where the column has no `ClassLabel`.

    Raises:
        InvalidInputError: There is no such column, or the dataset does not say which columns it has.
    """
    feature = _label_feature(dataset, label_column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def read_labels(dataset: Any, label_column: str) -> tuple[np.ndarray, list[str] | None]:
    """The label of every row, int64, and the names of the classes where they have any."""
    check_dataset(dataset)
    feature = _label_feature(dataset, label_column)
    _check_feature(feature, label_column)
    # Straight from the table: `dataset[column]` would run a transform, and through an indices mapping (after
    # `select`, `filter`, `shuffle`) it goes over Python lists, seconds for a million rows.
    column = dataset.data.column(label_column)
    labels, absent = column.fill_null(0).to_numpy().astype(np.int64), column.is_null().to_numpy()
    if dataset._indices is not None:
        mapping = dataset._indices.column(0).to_numpy()
        labels, absent = labels[mapping], absent[mapping]
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    highest = len(names) - 1 if names is not None else np.iinfo(np.int64).max
    bad = np.flatnonzero(absent | (labels < 0) | (labels > highest))
    if bad.size:
        value = None if absent[bad[0]] else int(labels[bad[0]])
        wanted = f"0 to {highest}" if names is not None else "0 up"
        raise InvalidInputError(
            f"row {bad[0]}, column {label_column!r}",
            value,
            f"a class id from {wanted}",
            f"Remove unlabelled rows ({bad.size} in all), for instance with `dataset.filter`.",
        )
    return labels, names


def _label_feature(dataset: Any, label_column: str) -> Any:
    """The feature of the label column.

    Raises:
        InvalidInputError: There is no such column, or the dataset does not say which columns it has.
    """
    features = getattr(dataset, "features", None)
    if features is None:
        raise InvalidInputError(
            "dataset",
            type(dataset).__name__,
            "one split of a dataset with features",
            "Pick a split, or cast the dataset to its features.",
        )
    if label_column not in features:
        class_labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        hint = f"Pass label_column={class_labels[0]!r}." if len(class_labels) == 1 else "Pass one as label_column."
        labels = f", of which {class_labels} hold class labels" if class_labels else ""
        raise InvalidInputError("label_column", label_column, f"one of {list(features)}{labels}", hint)
    return features[label_column]


def check_dataset(dataset: Any) -> None:
    if isinstance(dataset, dict):  # of `datasets`, or a plain one
        splits = list(dataset)
        example = f"dataset[{splits[0]!r}]" if splits else "dataset['train']"
        raise InvalidInputError("dataset", splits, "one of these splits", f"Pass {example}.")
    if isinstance(dataset, IterableDataset):
        raise InvalidInputError(
            "dataset",
            type(dataset).__name__,
            "a datasets.Dataset, whose rows can be picked by number",
            "Load it with streaming=False, or collect the rows needed with `Dataset.from_list(list(dataset))`.",
        )
    if not isinstance(dataset, Dataset):
        fix = "Build one, for instance with `Dataset.from_dict` or `Dataset.from_list`."
        raise InvalidInputError("dataset", type(dataset).__name__, "a datasets.Dataset", fix)


def _check_feature(feature: Any, label_column: str) -> None:
    if isinstance(feature, ClassLabel):
        return
    dtype = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if dtype in ("string", "large_string", "string_view"):
        fix = f"Name the classes with `dataset = dataset.class_encode_column({label_column!r})`."
    elif isinstance(feature, Value):
        fix = f"Make it integers with `dataset.cast_column({label_column!r}, Value('int64'))`."
    else:
        fix = "Pass a column with one class for each row as label_column."
    if not (isinstance(feature, Value) and dtype.startswith(("int", "uint"))):
        raise InvalidInputError(f"column {label_column!r}", dtype, "ClassLabel or integers", fix)


def _checked_label_space(names: Any, num_classes: int | None) -> tuple[list[str] | None, int | None]:
    if names is None:
        return None, num_classes
    if isinstance(names, str):
        raise InvalidInputError("names", names, "a list in which item i names class i, or an `id2label`")
    if isinstance(names, Mapping):
        of_id = names_by_id(names, "names")
        if set(of_id) != set(range(len(of_id))):
            raise InvalidInputError("names", names, f"the ids 0 to {len(of_id) - 1}, each once", "Name every class.")
        names = [of_id[class_id] for class_id in range(len(of_id))]
    names = list(names)
    if num_classes is not None and num_classes != len(names):
        expected = f"{len(names)}, because so many `names` are given"
        raise InvalidInputError("num_classes", num_classes, expected, "Leave one of both out.")
    return names, len(names)


def _written_id(text: str) -> int | None:
    """The id that a string writes. "03" is none: it looks like a name, and taking it for class 3 would be a guess."""
    return int(text) if text.isascii() and text.isdecimal() and str(int(text)) == text else None


def _hint(unknown: list[str | int], names: list[str] | None) -> str:
    """What to do about unknown classes; offers the names most like theirs."""
    nearest = {item: _nearest(item, names) for item in unknown if isinstance(item, str) and names}
    offers = [f"{item!r} (nearest: {', '.join(map(repr, found))})" for item, found in nearest.items() if found]
    correct = f"Correct {', '.join(offers) or 'the request'}"
    return f"{correct}, or check that it is meant for these labels."


def _nearest(name: str, names: list[str]) -> list[str]:
    """Names equal but for letter case, then similar ones, then longer ones ("tench" in "tench, Tinca tinca")."""
    folded: dict[str, list[str]] = {}
    for candidate in names:
        folded.setdefault(candidate.casefold(), []).append(candidate)
    wanted = name.casefold()
    close = [c for match in difflib.get_close_matches(wanted, folded, n=_NEAREST) for c in folded[match]]
    longer = [candidate for candidate in names if wanted and wanted in candidate.casefold()]
    return list(dict.fromkeys([*folded.get(wanted, []), *close, *longer]))[:_NEAREST]


def describe_label_space(names: list[str] | None, num_classes: int | None) -> str:
    ids = "an id from 0 up" if num_classes is None else f"an id from 0 to {num_classes - 1}"
    if names is None:
        return f"{ids} (these labels have no names)"
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
    return f"{ids} or a name out of {shown}"


def _refuse_repeats(name: str, items: list[str | int], ids: list[int]) -> None:
    repeated = [class_id for class_id, count in Counter(ids).items() if count > 1]
    if repeated:
        spelled = "; ".join(
            f"class {class_id} as {', '.join(repr(i) for i, c in zip(items, ids, strict=True) if c == class_id)}"
            for class_id in repeated
        )
        raise InvalidInputError(name, items, "each class once", f"Remove the repeats: {spelled}.")
