"""The values a ledger can hold, and the error for what it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ..errors import InvalidInputError


class LedgerError(ValueError):
    """The ledger, or something it vouches for, is not what it should be."""


class InvalidLedgerError(InvalidInputError, LedgerError):
    """A field of a ledger, or what is to become one, holds a value that cannot be used; see its attributes."""


def plain_json(value: Any, where: str) -> Any:
    """A copy of `value` in plain JSON types; InvalidLedgerError, with the place, for what JSON cannot hold."""
    try:
        return _plain_json(value, where)
    except RecursionError:
        raise InvalidLedgerError(where, value, "a value that is not nested endlessly", "Leave it out.") from None


def _plain_json(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int):  # the exact types first: most of a long ledger is numbers
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise InvalidLedgerError(where, value, "text that UTF-8 can encode", "Correct it.")
        return str.__str__(value)  # the bare text of an enum member
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise InvalidLedgerError(where, float(value), "a finite number", "Leave it out or find its cause.")
        return float(value)
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise InvalidLedgerError(f"a key of {where}", strange[0], "text", "Convert it.")
        return {_plain_json(key, where): _plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidLedgerError(
        where, value, "text, numbers, True, False, None, or lists and dicts of them", "Convert it first."
    )


def is_names(value: Any) -> bool:
    """Whether `value` is a list of text."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
