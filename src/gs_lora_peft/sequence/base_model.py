"""The part of a ledger that says on which base weights its tasks rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, Strict

from ..checking import NotNegativeWhole, OptionalText, checked
from .plain import InvalidLedgerError, plain_json

_KINDS: dict[str, Any] = {
    "fingerprint": Annotated[
        str,
        Strict(),
        Field(pattern="^sha256:[0-9a-f]{64}$", description="'sha256:' and 64 hexadecimal digits"),
    ],
    **dict.fromkeys(("name_or_path", "revision", "model_class"), OptionalText),
    "num_labels": Annotated[NotNegativeWhole | None, Field(description="a number of classes or None")],
}


def checked_base_model(base_model: Any) -> dict[str, Any]:
    """What [`model_identity`] returns, as plain JSON types.

    Raises:
        LedgerError: It is something else; the message names the field.
    """
    if not isinstance(base_model, Mapping):
        raise InvalidLedgerError("base_model", base_model, "what model_identity(model) returns", "Pass that.")
    base: dict[str, Any] = plain_json(base_model, "base_model")
    for key, kind in _KINDS.items():
        checked(
            f"base_model.{key}",
            base.get(key),
            kind,
            fix="Take it from model_identity(model).",
            error=InvalidLedgerError,
        )
    return base


def base_model_problem(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Says in what way a model is not the one expected, or `None` if it is. The weights decide, not the name."""
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
    """A fingerprint as messages show it."""
    return f"{fingerprint.removeprefix('sha256:')[:12]}..." if isinstance(fingerprint, str) else repr(fingerprint)
