"""Whether requests can be carried out, before any of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..data.classes import resolve_classes
from ..errors import InvalidInputError
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .plain import LedgerError
from .request import ForgetRequest


def resolve_request(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    """Ids of the classes asked for, none of which may be forgotten already.

    Raises:
        UnknownClassError: A class does not exist.
        LedgerError: A class was forgotten by a task in effect, or the ledger does not say what was.
    """
    classes = _ids(request, ledger, names)
    for class_id in classes:
        if earlier := ledger.task_of_class(class_id):
            raise LedgerError(
                f"class {_shown([class_id], names)} was forgotten already, by {earlier.name} at {earlier.finished_at}."
                " Leave it out of the request."
            )
    return classes


def check_missing(classes: Sequence[str | int], ledger: ForgettingLedger, names: Sequence[str] | None) -> None:
    """Checks that classes to keep without training data exist and were not forgotten.

    Raises:
        UnknownClassError: One does not exist.
        ValueError: One is given twice, or was forgotten by a task in effect.
    """
    if isinstance(classes, Sequence) and not classes:
        return
    try:
        ids = resolve_classes(
            classes, names=names, num_classes=ledger.base_model.get("num_labels"), name="missing_classes"
        )
    except InvalidInputError:
        raise
    except ValueError as error:
        raise type(error)(f"`missing_classes`: {error}") from None
    if gone := [class_id for class_id in ids if ledger.task_of_class(class_id)]:
        raise ValueError(
            f"`missing_classes` names {_shown(gone, names)}, which earlier tasks forgot; missing classes are kept. "
            "Leave them out."
        )


def match_requests(
    requests: Sequence[ForgetRequest], ledger: ForgettingLedger, names: Sequence[str] | None
) -> list[TaskEntry]:
    """The tasks in effect that carried out the first of a sequence of requests.

    Raises:
        LedgerError: A task in effect does not belong to the request at its place.
        ValueError: `requests` is no list of requests.
    """
    if not isinstance(requests, (list, tuple)):
        raise InvalidInputError("requests", requests, "a list of ForgetRequest", "Write [request].")
    done = ledger.active_tasks[: len(requests)]
    for number, (entry, request) in enumerate(zip(done, requests, strict=False), start=1):
        if set(_ids(request, ledger, names)) != set(entry.classes or ()):
            raise LedgerError(
                f"request {number} asks for {list(request.classes)!r}, but {entry.name} in '{ledger.folder}' forgot "
                f"{entry.class_names or entry.classes!r}. Give the requests in the order they were carried out, or "
                "choose another folder."
            )
    return done


def check_sequence(
    requests: Sequence[ForgetRequest],
    ledger: ForgettingLedger,
    names: Sequence[str] | None,
    split: Callable[[Sequence[int], Sequence[int]], Any],
) -> None:
    """Checks that requests can be carried out one after another.

    Args:
        split (`Callable`): Takes the classes to forget and the classes forgotten before, and raises ValueError if the
            data has none of the former or nothing else.

    Raises:
        UnknownClassError, LedgerError, ValueError: One of them cannot.
    """
    forgotten = ledger.forgotten_classes
    for request in requests:
        classes = resolve_request(request, ledger, names)
        if again := [class_id for class_id in classes if class_id in forgotten]:
            raise LedgerError(
                f"the request for {list(request.classes)!r} names {_shown(again, names)}, which an earlier one of the "
                "sequence forgets. Leave it out."
            )
        split(classes, forgotten)
        forgotten = [*forgotten, *classes]


def _ids(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    if not isinstance(request, ForgetRequest):
        raise InvalidInputError("request", request, "a ForgetRequest", "Write ForgetRequest(['church']).")
    for entry in ledger.active_tasks:
        if entry.classes is None:
            raise LedgerError(
                f"the ledger in '{ledger.folder}' withholds the classes of {entry.name}, so that they cannot be kept "
                "out of the training. Continue in the folder of the original run."
            )
    return resolve_classes(request.classes, names=names, num_classes=ledger.base_model.get("num_labels"))


def _shown(classes: Sequence[int], names: Sequence[str] | None) -> str:
    return ", ".join(repr(names[class_id] if names else class_id) for class_id in classes)
