"""The values a ledger can hold, the error for what it cannot, and the base model it names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from ..checking import NotNegativeWhole, OptionalText, checked
from ..errors import InvalidInputError


class LedgerError(ValueError):
    """The ledger, or something it vouches for, is not what it should be. Subclasses say what.

    Args:
        message (`str`):
            What is wrong, and the fix.
        parts (`Any`):
            What callers read instead of the message: each becomes an attribute.
    """

    def __init__(self, message: str = "", **parts: Any):
        super().__init__(message)
        vars(self).update(parts)


class InvalidLedgerError(InvalidInputError, LedgerError):
    """A field of a ledger, or what is to become one, holds a value that cannot be used; see its attributes."""


class LedgerFileError(LedgerError):
    """The file of a ledger cannot be read, or must not be written.

    Attributes:
        path (`Path`):
            The file.
        reason (`str`):
            `"missing"`, `"unreadable"`, `"damaged"` or `"edited"`; or `"exists"`, `"changed"` or `"deleted"`, since it
            was read.
    """

    path: Path
    reason: str


class RunLockedError(LedgerError):
    """Another process works in the folder of a run.

    Attributes:
        folder (`Path`):
            The folder.
    """

    folder: Path


class LinkedRunError(LedgerError):
    """A part of the folder of a run is a symbolic link.

    Attributes:
        folder (`Path`):
            The folder.
    """

    folder: Path


class FilesDifferError(LedgerError):
    """Files of a run are missing, or are not those that its ledger vouches for.

    Args:
        folder (`Path`):
            The folder of the run.
        problems (`dict[str, str]`):
            What is wrong, by path relative to the folder.

    Attributes:
        folder:
            As given.
        problems:
            As given.
    """

    folder: Path
    problems: dict[str, str]

    @classmethod
    def of(cls, folder: Path, problems: Mapping[str, str]) -> FilesDifferError:
        """The error with its message."""
        lines = "".join(f"\n  {name}: {problem.rstrip('.')}." for name, problem in problems.items())
        message = f"{len(problems)} file(s) in '{folder}' are not what the ledger vouches for:{lines}\n"
        fix = "Fetch or restore clean copies of them; do not use them as they are."
        return cls(message + fix, folder=folder, problems=dict(problems))


class UnusableAdapterError(LedgerError):
    """The adapter of a task is not plain LoRA on Linear layers, or does not fit the model.

    Attributes:
        task (`str`):
            The task.
        file (`str` or `None`):
            The name of the file that is wrong; `None` if it is the model that does not fit.
        name (`str` or `None`):
            What is wrong in it, where that is known: a setting, a module, a tensor.
    """

    task: str
    file: str | None
    name: str | None


class OtherBaseModelError(LedgerError):
    """The tasks of a ledger rest on other base weights.

    Attributes:
        expected:
            What [`model_identity`] says of both; of the given one perhaps the fingerprint alone.
        given (`dict`):
            See `expected`.
    """

    expected: dict[str, Any]
    given: dict[str, Any]


class WithheldClassesError(LedgerError):
    """What was asked for needs to know the classes of a task, which its ledger withholds.

    Attributes:
        tasks (`list[str]`):
            The tasks whose classes are withheld.
    """

    tasks: list[str]


class AlreadyForgottenError(LedgerError):
    """A class was forgotten already, by a task in effect or by an earlier request of the same sequence.

    Attributes:
        classes (`list[int]`):
            The classes.
        task (`str` or `None`):
            The task in effect that forgot them.
    """

    classes: list[int]
    task: str | None


class RequestOrderError(LedgerError):
    """Requests do not begin with those that were carried out, in their order.

    Attributes:
        task (`str`):
            The first task that is asked for out of its place, or not at all.
    """

    task: str


class LaterTasksError(LedgerError):
    """A task cannot be redone alone, because later ones rest on it.

    Attributes:
        task (`str`):
            The task.
        later (`list[str]`):
            The later tasks in effect.
    """

    task: str
    later: list[str]


class UnfinishedRequestError(LedgerError):
    """An unfinished request lies in the folder, and another one, or other settings, are asked for.

    Attributes:
        path (`Path`):
            Its working folder, or the file in it that cannot be read.
        differences (`dict[str, tuple]`):
            By setting, what it was begun with and what is given; empty if the request is another one or cannot be
            read.
    """

    path: Path
    differences: dict[str, tuple[Any, Any]]


class DivergedRunError(LedgerError):
    """Two states of a run went separate ways, or one withholds what the other names.

    Attributes:
        folder (`Path`):
            The folder that holds one of them.
    """

    folder: Path


Names = Annotated[list[Annotated[str, Strict()]], Field(description="a list of names")]


def as_ledger_error(error: ValueError, fix: str | None = None) -> LedgerError:
    """An error of another part of the package as one of the ledger, with the same parts."""
    if isinstance(error, InvalidInputError):
        return InvalidLedgerError(error.name, error.value, error.expected, error.fix if fix is None else fix)
    return LedgerError(str(error) if fix is None else f"{str(error).rstrip('.')}. {fix}")


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
