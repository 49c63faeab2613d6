"""The errors of ledgers and run folders. Callers and tests read their attributes, not their messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, PrivateInputError


class LedgerError(ValueError):
    """The ledger, or something it records, is not as expected. Subclasses say what.

    Args:
        message (`str`):
            What is wrong, and the fix.
        parts (`Any`):
            Details for the caller. Each becomes an attribute.
    """

    def __init__(self, message: str = "", **parts: Any):
        super().__init__(message)
        vars(self).update(parts)


class InvalidLedgerError(InvalidInputError, LedgerError):
    """A field of a ledger, or of an entry that is about to be recorded, holds an invalid value."""


class PrivateLedgerError(PrivateInputError, InvalidLedgerError):
    """As [`InvalidLedgerError`], of a value with names of classes, which the message does not show."""


class LedgerFileError(LedgerError):
    """The file of a ledger cannot be read, or must not be written.

    Attributes:
        path (`Path`):
            The file.
        reason (`str`):
            While reading: `"missing"`, `"unreadable"`, `"damaged"` or `"edited"`. While writing: `"exists"`, or
            `"changed"` or `"deleted"` since it was read.
    """

    path: Path
    reason: str


class RunLockedError(LedgerError):
    """Another process uses the run folder.

    Attributes:
        folder (`Path`):
            The run folder.
    """

    folder: Path


class LinkedRunError(LedgerError):
    """A part of the run folder is a symbolic link.

    Attributes:
        folder (`Path`):
            The run folder.
    """

    folder: Path


class FilesDifferError(LedgerError):
    """Files of a run are missing, or their SHA-256 differs from the ledger's.

    Attributes:
        folder (`Path`):
            The run folder.
        problems (`dict[str, str]`):
            Path relative to the folder → what is wrong.
    """

    folder: Path
    problems: dict[str, str]

    @classmethod
    def of(cls, folder: Path, problems: Mapping[str, str]) -> FilesDifferError:
        """Makes the error and its message.

        Args:
            folder (`Path`):
                The run folder.
            problems (`Mapping[str, str]`):
                Path relative to the folder → what is wrong.
        """
        lines = "".join(f"\n  {name}: {problem.rstrip('.')}." for name, problem in problems.items())
        message = f"{len(problems)} file(s) in '{folder}' differ from the ledger:{lines}\n"
        fix = "Fetch or restore clean copies of them; do not use them as they are."
        return cls(message + fix, folder=folder, problems=dict(problems))


class UnusableAdapterError(LedgerError):
    """What a task left is not plain LoRA on Linear layers, nor finite values of weights, or does not fit the model.

    Attributes:
        task (`str`):
            Name of the task.
        file (`str` or `None`):
            Name of the invalid file; `None` if the files are valid but do not fit the model.
        name (`str` or `None`):
            The setting, module or tensor that is invalid, if known.
    """

    task: str
    file: str | None
    name: str | None


class OtherBaseModelError(LedgerError):
    """The ledger belongs to other base weights.

    Attributes:
        expected (`dict`):
            [`model_identity`] of the ledger's base model.
        given (`dict`):
            [`model_identity`] of the model in use, or its fingerprint alone.
    """

    expected: dict[str, Any]
    given: dict[str, Any]


class WithheldClassesError(LedgerError):
    """The operation needs the classes of a task, but the ledger withholds them.

    Attributes:
        tasks (`list[str]`):
            Names of the tasks whose classes are withheld.
    """

    tasks: list[str]


class AlreadyForgottenError(LedgerError):
    """A class was already forgotten by a task in effect, or by an earlier request of the same sequence.

    Attributes:
        classes (`list[int]`):
            Ids of the classes.
        task (`str` or `None`):
            The task in effect that forgot them; `None` if it was an earlier request.
    """

    classes: list[int]
    task: str | None


class RequestOrderError(LedgerError):
    """The requests do not begin with the completed ones in their original order.

    Attributes:
        task (`str`):
            The first task whose request is missing or out of order.
    """

    task: str


class LaterTasksError(LedgerError):
    """A task cannot be redone or left out alone, because later tasks were trained on top of it.

    Attributes:
        task (`str`):
            Name of the task.
        later (`list[str]`):
            Names of the later tasks in effect.
    """

    task: str
    later: list[str]


class UnfinishedRequestError(LedgerError):
    """The folder holds an unfinished request, and the new one differs from it in classes or settings.

    Attributes:
        path (`Path`):
            The workspace of the unfinished request, or the unreadable file in it.
        differences (`dict[str, tuple]`):
            Setting → value of the unfinished request and value given now. Empty if the classes differ or the file is
            unreadable.
    """

    path: Path
    differences: dict[str, tuple[Any, Any]]


class DivergedRunError(LedgerError):
    """Two copies of a run have different tasks, or one withholds classes that the other names.

    Attributes:
        folder (`Path`):
            The folder that holds one of the copies.
    """

    folder: Path


class WorseAuditError(LedgerError):
    """An audit that tried less would replace a worse verdict of the same tasks.

    Attributes:
        verdict (`str`):
            The recorded verdict.
        replacement (`str`):
            The verdict of the new audit.
    """

    verdict: str
    replacement: str


def as_ledger_error(error: ValueError, fix: str | None = None) -> LedgerError:
    """Converts an error of another part of the package to a [`LedgerError`].

    Args:
        error (`ValueError`):
            The error. The attributes of an [`InvalidInputError`] are kept.
        fix (`str`, *optional*):
            Advice that replaces the error's own.
    """
    if isinstance(error, InvalidInputError):
        kind = PrivateLedgerError if isinstance(error, PrivateInputError) else InvalidLedgerError
        return kind(error.name, error.value, error.expected, error.fix if fix is None else fix)
    return LedgerError(str(error) if fix is None else f"{str(error).rstrip('.')}. {fix}")
