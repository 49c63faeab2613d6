"""Taking a task back, and which one can be carried out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .advice import advice_to_redo
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .merging import MergedModel
from .plain import LedgerError
from .request import ForgetRequest
from .run_folder import RunFolder
from .scoring import Scores


def task_to_redo(ledger: ForgettingLedger, task: str | None) -> TaskEntry:
    """The task that is to be carried out again: the last one in effect.

    Args:
        ledger ([`ForgettingLedger`]): The ledger.
        task (`str`, *optional*): Its name; `None` for the last one in effect. One that was carried out again already
            is given as the task that took its place.

    Raises:
        LedgerError: There is no such task in effect, it is not the last one, or its classes are withheld.
    """
    active = ledger.active_tasks
    if task is None and not active:
        raise LedgerError(f"'{ledger.folder}' has no task in effect, so that none can be redone. Ask for one first.")
    name = active[-1].name if task is None else _successor(ledger, task)
    (entry,) = ledger.select([name])
    if entry is not active[-1]:
        later = [other.name for other in active[active.index(entry) + 1 :]]
        raise LedgerError(
            f"{name} cannot be redone alone: {', '.join(later)} came later, on top of it. Go backwards from the last: "
            f"{advice_to_redo(ledger, name)}."
        )
    if entry.classes is None:
        raise LedgerError(
            f"the ledger in '{ledger.folder}' withholds the classes of {name}, so that it cannot be redone. Do it in "
            "the folder of the original run."
        )
    return entry


def request_of(entry: TaskEntry) -> ForgetRequest:
    """The request that a task carried out, with the time at which it was made."""
    try:
        return ForgetRequest.from_dict(entry.request)
    except ValueError as error:
        raise LedgerError(f"the request of {entry.name} cannot be made again: {error}") from error


def taken_out(entry: TaskEntry, ledger: ForgettingLedger, model: MergedModel, scores: Scores) -> dict[str, Any]:
    """Takes a task in effect out of the model; returns `scores_before` and `scores_after`."""
    classes = entry.classes or []
    others = [class_id for class_id in ledger.forgotten_classes if class_id not in classes]
    before = scores.of_revocation(model.bare, classes, others)
    model.rebuild([other.name for other in ledger.active_tasks if other.name != entry.name])
    return {"scores_before": before, "scores_after": scores.of_revocation(model.bare, classes, others)}


@contextmanager
def restored_on_error(ledger: ForgettingLedger) -> Iterator[None]:
    """Takes the tasks in memory back to what they were, if the block fails."""
    tasks = ledger.tasks
    try:
        yield
    except BaseException:
        ledger.tasks = tasks
        raise


def _successor(ledger: ForgettingLedger, task: str) -> str:
    """The task that took the place of one that was redone, or the task itself."""
    for entry in ledger.tasks:  # in order, so that a chain of them is followed to its end
        if entry.name == task and entry.revocation and entry.revocation.get("redone_as"):
            task = entry.revocation["redone_as"]
    return task


class RevocableRun(RunFolder):
    """The part of [`ContinualForgetter`] that takes tasks back."""

    _live: MergedModel
    _scores: Scores

    def revoke(self, task: str, reason: str | None = None) -> TaskEntry:
        """Take one request back: its adapter is no longer merged, and what that does is measured and recorded.

        Later tasks were trained on a model that had forgotten this one; without it they act on slightly other weights.
        Scores on the revoked, the still forgotten and the kept classes (`acc_revoked`, `acc_still_forgotten`,
        `acc_retain`) are taken before and after, on the evaluation data. The files of the task are left alone.

        Args:
            task (`str`): the task, e.g. `"task_002"`.
            reason (`str`, *optional*): recorded in the ledger.

        Returns:
            [`TaskEntry`]: the entry with its `revocation`.

        Raises:
            LedgerError: if there is no such task in effect, or another process works in the folder. As after any
                other error, ledger and model are unchanged.
        """
        (entry,) = self.ledger.select([task])
        with self._exclusively(), self._live.restored_on_error():
            scores = taken_out(entry, self.ledger, self._live, self._scores)
            self._record(lambda: self.ledger.revoke(task, reason=reason, **scores))
        return next(revoked for revoked in self.ledger.tasks if revoked.name == task)
