"""Classes of datasets and models: their names and ids, and the label of every row."""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, Value
from pydantic import BeforeValidator, Field

from ..checking import Text, Whole, checked, ordered_list
from ..errors import InvalidInputError, PrivateInputError

_NEAREST = 3  # similar names offered in an error

# Unlike `ClassRefs`, with negative ids: they are unknown classes, like other ids out of range.
_REQUESTED = Annotated[
    list[Annotated[Text | Whole, Field(description="a class name (text) or a class id (a whole number)")]],
    BeforeValidator(ordered_list),
    Field(min_length=1, description="a list of class names or ids, one at least"),
]


class UnknownClassError(InvalidInputError):
    """Classes that the labels do not have. The message names none: it may be read by others than the caller.

    Args:
        name (`str`):
            As in [`InvalidInputError`].
        value (`list[str | int]`):
            The unknown classes, as they were asked for.
        expected (`str`):
            As in [`InvalidInputError`].
        fix (`str`, *optional*, defaults to `""`):
            As in [`InvalidInputError`].
        nearest (`dict[str, list[str]]`, *optional*, defaults to none):
            Similar names for each unknown one.
    """

    def __init__(
        self,
        name: str,
        value: list[str | int],
        expected: str,
        fix: str = "",
        nearest: Mapping[str, list[str]] = MappingProxyType({}),
    ):
        super().__init__(name, value, expected, fix)
        shown = f"{len(value)} unknown class{'es' if len(value) > 1 else ''}"
        self.args = (f"`{name}` has {shown}; expected {expected}. {fix}".rstrip(),)
        self.nearest = dict(nearest)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.expected, self.fix, self.nearest)


def ids_by_name(mapping: Mapping[Any, Any], argument: str = "label2id") -> dict[str, int]:
    """Reads a `label2id`, with whole numbers as ids.

    Args:
        mapping (`Mapping`):
            Names with their ids, as whole numbers or as text ("0"); or an `id2label`, which is inverted.
        argument (`str`, *optional*, defaults to `"label2id"`):
            Name of the mapping in errors.

    Returns:
        `dict[str, int]`: Id of each name.

    Raises:
        InvalidInputError: If `mapping` is not a mapping, or an id is not a whole number from 0 up.

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
    raise _mapping_error(argument, next(class_id for _, class_id in pairs if _id(class_id) is None))


def names_by_id(mapping: Mapping[Any, Any], argument: str = "id2label") -> dict[int, str]:
    """Reads an `id2label`, with whole numbers as ids; several ids may share a name.

    Args:
        mapping (`Mapping`):
            Ids, as whole numbers or as text ("0"), with their names; or a `label2id`, which is inverted.
        argument (`str`, *optional*, defaults to `"id2label"`):
            Name of the mapping in errors.

    Returns:
        `dict[int, str]`: Name of each id.

    Raises:
        InvalidInputError: If `mapping` is not a mapping, or an id is not a whole number from 0 up.
    """
    pairs = _pairs(mapping, argument)
    if all(_id(class_id) is not None for class_id, _ in pairs):
        return {_id(class_id): str(name) for class_id, name in pairs}  # type: ignore[misc]
    if all(_id(class_id) is not None for _, class_id in pairs):
        return {_id(class_id): str(name) for name, class_id in pairs}  # type: ignore[misc]
    raise _mapping_error(argument, next(class_id for class_id, _ in pairs if _id(class_id) is None))


def names_of_model(model: Any) -> dict[int, str]:
    """Names of a model's classes by id; empty if its configuration does not name them."""
    mapping = getattr(getattr(model, "config", None), "id2label", None)
    return names_by_id(mapping, "model.config.id2label") if mapping else {}


def _pairs(mapping: Any, argument: str) -> list[tuple[Any, Any]]:
    if not isinstance(mapping, Mapping):
        raise _mapping_error(argument, mapping)
    return list(mapping.items())


def _id(value: Any) -> int | None:
    """The id in a value, a whole number or its text; `None` if there is none."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else None
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    return found if found is not None and found >= 0 else None


def _mapping_error(argument: str, value: Any) -> InvalidInputError:
    expected = "class names and their ids, whole numbers from 0 up"
    return InvalidInputError(argument, value, expected, "Pass `model.config.label2id`.")


def resolve_classes(
    requested: Sequence[str | int],
    *,
    names: Sequence[str] | Mapping[Any, Any] | None,
    num_classes: int | None = None,
    name: str = "classes",
) -> list[int]:
    """Turns class names and ids into ids.

    A string is first read as a name, which must match exactly, including letter case. If no class has that name, the
    text of a whole number ("3") is read as an id. If class names are numbers themselves, as folder names often are,
    "3" is only a name: a class "3" may be missing from the data.

    Args:
        requested (`Sequence[str | int]`):
            Names or ids of one or more classes, each class once.
        names (`Sequence[str]` or `Mapping`, *optional*):
            `names[i]` is the name of class `i`; or a model's `id2label` or `label2id`, whose ids may be text ("0").
            `None` if the classes only have ids.
        num_classes (`int`, *optional*, defaults to the number of `names`):
            Ids go from 0 to `num_classes - 1`. Without it and without names, every id from 0 up is accepted.
        name (`str`, *optional*, defaults to `"classes"`):
            Name of the argument in errors.

    Returns:
        `list[int]`: The ids, in the order of the request.

    Raises:
        UnknownClassError: If no class has a name (`nearest` has the most similar ones), or an id is out of range.
        InvalidInputError: If the request is empty; if an item is neither a name nor an id; if two items mean the same
            class; if several classes share a requested name; or if `names` and `num_classes` disagree.

    Example:
        ```py
        >>> resolve_classes(["tench", 2], names=["tench", "golf ball", "church"])
        [0, 2]
        ```
    """
    items = checked(name, requested, _REQUESTED, error=PrivateInputError)
    names, num_classes = _checked_label_space(names, num_classes)
    ids_of_name: dict[str, list[int]] = {}
    for class_id, label in enumerate(names or ()):
        ids_of_name.setdefault(label, []).append(class_id)
    numbers_are_names = any(_written_id(label) is not None for label in ids_of_name)

    ids: list[int] = []
    unknown: dict[int, str | int] = {}
    for place, item in enumerate(items):
        if isinstance(item, str) and item in ids_of_name:
            if len(ids_of_name[item]) > 1:
                expected = f"the name of one class, but the classes {ids_of_name[item]} share this one"
                raise PrivateInputError(f"{name}[{place}]", item, expected, "Pass the id of the class instead.")
            ids.append(ids_of_name[item][0])
            continue
        written = item if not isinstance(item, str) else None if numbers_are_names else _written_id(item)
        if written is not None and written >= 0 and (num_classes is None or written < num_classes):
            ids.append(written)
        else:
            unknown[place] = item
    if unknown:
        raise _unknown(name, unknown, names, num_classes)
    _refuse_repeats(name, items, ids)
    return ids


def label_names(dataset: Any, label_column: str = "label") -> list[str] | None:
    """The names of the classes in a label column.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            The dataset. Only its features are read.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column with one class for each row.

    Returns:
        `list[str]` or `None`: `names[i]` is the name of class `i`; `None` if the column is not a `ClassLabel`.

    Raises:
        InvalidInputError: If the dataset lacks the column or does not know its features.
    """
    feature = _label_feature(dataset, label_column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def read_labels(dataset: Any, label_column: str) -> tuple[np.ndarray, list[str] | None]:
    """The label of every row, int64, and the names of the classes, if they have names.

    Raises:
        InvalidInputError: If `dataset` is not a `datasets.Dataset`, the column cannot hold labels, or a row does not
            have a label.
    """
    check_dataset(dataset)
    feature = _label_feature(dataset, label_column)
    _check_feature(feature, label_column)
    # Read from the table: `dataset[column]` would run a transform. With an indices mapping (after `select`, `filter`
    # or `shuffle`) it would build Python lists, which takes seconds for a million rows.
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
            f"Remove unlabelled rows ({bad.size} in total), for instance with `dataset.filter`.",
        )
    return labels, names


def _label_feature(dataset: Any, label_column: str) -> Any:
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
        fix = f"Pass label_column={class_labels[0]!r}." if len(class_labels) == 1 else "Pass one as label_column."
        labels = f", of which {class_labels} hold class labels" if class_labels else ""
        raise InvalidInputError("label_column", label_column, f"one of {list(features)}{labels}", fix)
    return features[label_column]


def check_dataset(dataset: Any) -> None:
    """Checks that an argument is a `datasets.Dataset`.

    Raises:
        InvalidInputError: If it is something else, such as a `DatasetDict` or a stream.
    """
    if isinstance(dataset, dict):  # a `DatasetDict` or a plain one
        splits = list(dataset)
        example = f"dataset[{splits[0]!r}]" if splits else "dataset['train']"
        raise InvalidInputError("dataset", splits, "one of these splits", f"Pass {example}.")
    if isinstance(dataset, IterableDataset):
        raise InvalidInputError(
            "dataset",
            type(dataset).__name__,
            "a datasets.Dataset, whose rows have numbers",
            "Load it with streaming=False, or collect its rows with `Dataset.from_list(list(dataset))`.",
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
        expected = f"{len(names)}, the number of `names`"
        raise InvalidInputError("num_classes", num_classes, expected, "Pass only one of them.")
    return names, len(names)


def _written_id(text: str) -> int | None:
    """The id in a string, else `None`. "03" is not an id: it looks like a name, and class 3 would be a guess."""
    return int(text) if text.isascii() and text.isdecimal() and str(int(text)) == text else None


def _unknown(
    name: str, unknown: Mapping[int, str | int], names: list[str] | None, num_classes: int | None
) -> UnknownClassError:
    """The error for unknown classes by their place in the request."""
    places = ", ".join(f"{name}[{place}]" for place in unknown)
    fix = f"Correct {places}, or check that the dataset and its labels are the right ones."
    values = list(unknown.values())
    near = {item: _nearest(item, names) for item in values if isinstance(item, str) and names}
    nearest = {item: found for item, found in near.items() if found}
    return UnknownClassError(name, values, _label_space(names, num_classes), fix, nearest)


def _nearest(name: str, names: list[str]) -> list[str]:
    """Names that differ in letter case, then similar ones, then longer ones ("tench" in "tench, Tinca tinca")."""
    folded: dict[str, list[str]] = {}
    for candidate in names:
        folded.setdefault(candidate.casefold(), []).append(candidate)
    wanted = name.casefold()
    close = [c for match in difflib.get_close_matches(wanted, folded, n=_NEAREST) for c in folded[match]]
    longer = [candidate for candidate in names if wanted and wanted in candidate.casefold()]
    return list(dict.fromkeys([*folded.get(wanted, []), *close, *longer]))[:_NEAREST]


def _label_space(names: list[str] | None, num_classes: int | None) -> str:
    """The valid names and ids, in words."""
    ids = "ids from 0 up" if num_classes is None else f"ids from 0 to {num_classes - 1}"
    return f"{ids} (these labels have no names)" if names is None else f"{ids} or names of the {len(names)} classes"


def _refuse_repeats(name: str, items: list[str | int], ids: list[int]) -> None:
    repeated = [class_id for class_id, count in Counter(ids).items() if count > 1]
    if repeated:
        spelled = "; ".join(
            f"class {class_id} is {' and '.join(f'{name}[{place}]' for place, c in enumerate(ids) if c == class_id)}"
            for class_id in repeated
        )
        raise PrivateInputError(name, items, "each class once", f"Remove the repeats: {spelled}.")
