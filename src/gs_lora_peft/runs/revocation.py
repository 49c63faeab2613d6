"""Revoking a task, and which one can be redone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..adapters import MergedModel
from ..data import ForgettingSplit
from ..errors import located
from ..ledger import (
    ForgetRequest,
    ForgettingLedger,
    InvalidLedgerError,
    LaterTasksError,
    TaskEntry,
    WithheldClassesError,
    as_ledger_error,
)
from .folder import RunFolder
from .recipe import Recipe
from .scores import Scores
from .settings import Differences, advice_to_redo


def task_to_redo(ledger: ForgettingLedger, task: str | None) -> TaskEntry:
    """The task that is to be carried out again: the last one in effect.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        task (`str`, *optional*):
            Its name; `None` for the last one in effect. One that was carried out again already is given as the task
            that took its place.

    Raises:
        InvalidLedgerError: There is no such task in effect.
        LaterTasksError: It is not the last one.
        WithheldClassesError: Its classes are withheld.
    """
    active = ledger.active_tasks
    if task is None and not active:
        raise InvalidLedgerError(
            "task", task, f"a task in effect, and '{ledger.folder}' has none", "Ask for one first."
        )
    name = active[-1].name if task is None else _successor(ledger, task)
    (entry,) = ledger.select([name])
    if entry is not active[-1]:
        later = [other.name for other in active[active.index(entry) + 1 :]]
        raise LaterTasksError(
            f"{name} cannot be redone alone: {', '.join(later)} came later, on top of it. Go backwards from the last: "
            f"{advice_to_redo(ledger, name)}.",
            task=name,
            later=later,
        )
    if entry.classes is None:
        raise WithheldClassesError(
            f"the ledger in '{ledger.folder}' withholds the classes of {name}, so that it cannot be redone. Do it in "
            "the folder of the original run.",
            tasks=[name],
        )
    return entry


def request_of(entry: TaskEntry) -> ForgetRequest:
    """The request that a task carried out, with the time at which it was made."""
    try:
        return ForgetRequest.from_dict(entry.request)
    except ValueError as error:
        raise as_ledger_error(located(error, f"the request of {entry.name}")) from error


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
    """The part of [`ContinualForgetter`] that takes tasks back, perhaps to carry them out again."""

    recipe: Recipe
    _live: MergedModel
    _scores: Scores
    # How a request is carried out, which is the other part's.
    _changed: Callable[[TaskEntry, Recipe], Differences]
    _split: Callable[[Sequence[int], Sequence[int]], ForgettingSplit]
    _carry_out: Callable[..., TaskEntry]

    def revoke(self, task: str, reason: str | None = None) -> TaskEntry:
        """Take one request back: its adapter is no longer merged, and what that does is measured and recorded.

        Later tasks were trained on a model that had forgotten this one; without it they act on slightly other weights.
        Scores on the revoked, the still forgotten and the kept classes (`acc_revoked`, `acc_still_forgotten`,
        `acc_retain`) are taken before and after, on the evaluation data. The files of the task are left alone.

        Args:
            task (`str`):
                The task, e.g. `"task_002"`.
            reason (`str`, *optional*):
                Recorded in the ledger.

        Returns:
            [`TaskEntry`]: The entry with its `revocation`.

        Raises:
            LedgerError: If there is no such task in effect, or another process works in the folder. As after any other
                error, ledger and model are unchanged.
        """
        (entry,) = self.ledger.select([task])
        with self._exclusively(), self._live.restored_on_error():
            scores = taken_out(entry, self.ledger, self._live, self._scores)
            self._record(lambda: self.ledger.revoke(task, reason=reason, **scores))
        return next(revoked for revoked in self.ledger.tasks if revoked.name == task)

    def redo(self, task: str | None = None) -> TaskEntry:
        """Carry the last request out again with the present settings; the task it had is revoked.

        Both are recorded at once, when the new task is done: until then, also after an error, the old task is in
        effect. If the process is killed, the same call goes on from the last checkpoint. The ledger keeps the revoked
        entry, and the files of its task stay.

        Args:
            task (`str`, *optional*):
                The task, e.g. `"task_003"`; by default the last one in effect. A task that was redone before stands
                for the one that took its place, and is not trained again if that one has the present settings.

        Returns:
            [`TaskEntry`]: The new entry.

        Raises:
            LedgerError: If there is no such task in effect, or later ones were trained on top of it.
            ValueError, NonFiniteLossError, OSError: As [`~ContinualForgetter.forget`].
        """
        entry = task_to_redo(self.ledger, task)
        if task not in (None, entry.name) and not self._changed(entry, self.recipe):
            with self._exclusively():
                self._judge_anew({entry.name: self.recipe.args.max_forget_accuracy})
            return self.ledger.select([entry.name])[0]
        request, classes = request_of(entry), entry.classes or []
        split = self._split(classes, [old for old in self.ledger.forgotten_classes if old not in classes])
        with self._exclusively(), self._live.restored_on_error(), restored_on_error(self.ledger):
            scores = taken_out(entry, self.ledger, self._live, self._scores)
            self.ledger.revoke(entry.name, redone_as=self.ledger.next_task_name(), **scores)
            return self._carry_out(request, split, redoes=entry.name)
