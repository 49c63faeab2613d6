"""The JSON values that a ledger holds, and its record of the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any

from pydantic import Field, Strict

from ..checking import NotNegativeWhole, OptionalText, checked
from .errors import InvalidLedgerError

Names = Annotated[list[Annotated[str, Strict()]], Field(description="a list of names")]

_BASE_MODEL_KINDS: dict[str, Any] = {
    "fingerprint": Annotated[
        str,
        Strict(),
        Field(pattern="^sha256:[0-9a-f]{64}$", description="'sha256:' and 64 hexadecimal digits"),
    ],
    **dict.fromkeys(("name_or_path", "revision", "model_class"), OptionalText),
    "num_labels": Annotated[NotNegativeWhole | None, Field(description="a number of classes or None")],
}


def plain_json(value: Any, where: str) -> Any:
    """Returns a copy of a value in plain JSON types.

    Args:
        value (`Any`):
            Numbers, text, `None`, and lists and dicts of them. NumPy numbers and enum members are converted.
        where (`str`):
            Name of the value, for the error.

    Raises:
        InvalidLedgerError: If JSON cannot hold the value. The error names the place.
    """
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
        bad_keys = [key for key in value if not isinstance(key, str)]
        if bad_keys:
            raise InvalidLedgerError(f"a key of {where}", bad_keys[0], "text", "Convert it.")
        return {_plain_json(key, where): _plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidLedgerError(
        where, value, "text, numbers, True, False, None, or lists and dicts of them", "Convert it first."
    )


def checked_base_model(base_model: Any) -> dict[str, Any]:
    """Checks the record of a base model and returns it in plain JSON types.

    Args:
        base_model (`Mapping[str, Any]`):
            What [`model_identity`] returns.

    Raises:
        InvalidLedgerError: If a field is missing or invalid. The error names it.
    """
    if not isinstance(base_model, Mapping):
        raise InvalidLedgerError("base_model", base_model, "what model_identity(model) returns", "Pass that.")
    base: dict[str, Any] = plain_json(base_model, "base_model")
    for key, kind in _BASE_MODEL_KINDS.items():
        checked(
            f"base_model.{key}",
            base.get(key),
            kind,
            fix="Take it from model_identity(model).",
            error=InvalidLedgerError,
        )
    return base


def base_model_mismatch(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Describes how a model differs from the expected one. Only the weights count, not the name.

    Args:
        expected (`Mapping[str, Any]`):
            [`model_identity`] of the expected model.
        given (`Mapping[str, Any]`):
            [`model_identity`] of the given model, or its fingerprint alone.

    Returns:
        `str` or `None`: The difference; `None` if the weights are the same.
    """
    mine, other = expected["fingerprint"], given.get("fingerprint")
    if other == mine:
        return None
    differences = [
        f"{key} {given[key]!r} instead of {expected[key]!r}"
        for key in ("name_or_path", "revision", "model_class", "num_labels")
        if given.get(key) is not None and expected.get(key) is not None and given[key] != expected[key]
    ]
    revision = f" at revision {expected['revision']}" if expected.get("revision") else ""
    return (
        f"the weights given have the fingerprint {first_digits(other)}, the ledger's have {first_digits(mine)}"
        + (f" ({'; '.join(differences)})" if differences else "")
        + f". Load {expected.get('name_or_path') or 'the original model'!r}{revision} in the dtype it had then and "
        "without merged adapters"
    )


def first_digits(fingerprint: Any) -> str:
    """Shortens a fingerprint for messages."""
    return f"{fingerprint.removeprefix('sha256:')[:12]}..." if isinstance(fingerprint, str) else repr(fingerprint)
