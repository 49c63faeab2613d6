"""A model's names of its classes and their numbers, whichever way `id2label` and `label2id` write them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError


def ids_by_name(mapping: Mapping[Any, Any], argument: str = "label2id") -> dict[str, int]:
    """`label2id` with whole numbers for ids.

    Args:
        mapping (`Mapping`): names with their ids, as whole numbers or as text ("0"); or an `id2label`, which is
            turned around.
        argument (`str`, *optional*, defaults to `"label2id"`): what it is called in messages.

    Raises:
        InvalidInputError: if it is not a mapping, or an id is not a whole number from 0 up.

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
        mapping (`Mapping`): ids, as whole numbers or as text ("0"), with their names; or a `label2id`, which is
            turned around.
        argument (`str`, *optional*, defaults to `"id2label"`): what it is called in messages.

    Raises:
        InvalidInputError: if it is not a mapping, or an id is not a whole number from 0 up.
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
