"""Revoking tasks, and carrying out the last one again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..adapters import MergedModel
from ..errors import located
from ..ledger import (
    ForgetRequest,
    ForgettingLedger,
    InvalidLedgerError,
    LaterTasksError,
    TaskEntry,
    WithheldClassesError,
    as_ledger_error,
    check_separable,
)
from .scores import Scores
from .settings import redo_advice
from .task import TaskRunner


def task_to_redo(ledger: ForgettingLedger, task: str | None) -> TaskEntry:
    """Returns the task to carry out again: the last one in effect.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        task (`str`, *optional*):
            Name of the task; by default the last one in effect. The name of a task that was redone stands for the task
            that replaced it.

    Raises:
        InvalidLedgerError: If there is no such task in effect.
        LaterTasksError: If it is not the last one.
        WithheldClassesError: If its classes are withheld.
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
            f"{name} cannot be redone alone: {', '.join(later)} were trained on top of it. Start with the last: "
            f"{redo_advice(ledger, name)}.",
            task=name,
            later=later,
        )
    if entry.classes is None:
        raise WithheldClassesError(
            f"the ledger in '{ledger.folder}' withholds the classes of {name}, so it cannot be redone. Do it in "
            "the folder of the original run.",
            tasks=[name],
        )
    return entry


def request_of(entry: TaskEntry) -> ForgetRequest:
    """Returns the request of a task, with the time when it was made."""
    try:
        return ForgetRequest.from_dict(entry.request)
    except ValueError as error:
        raise as_ledger_error(located(error, f"the request of {entry.name}")) from error


def unmerge_task(entry: TaskEntry, ledger: ForgettingLedger, model: MergedModel, scores: Scores) -> dict[str, Any]:
    """Removes a task in effect from the model; returns `scores_before` and `scores_after`."""
    classes = entry.classes or []
    others = [class_id for class_id in ledger.forgotten_classes if class_id not in classes]
    before = scores.of_revocation(model.bare, classes, others)
    model.rebuild([other.name for other in ledger.active_tasks if other.name != entry.name])
    return {"scores_before": before, "scores_after": scores.of_revocation(model.bare, classes, others)}


@contextmanager
def tasks_restored_on_error(ledger: ForgettingLedger) -> Iterator[None]:
    """Restores the tasks in memory if the block fails."""
    tasks = ledger.tasks
    try:
        yield
    except BaseException:
        ledger.tasks = tasks
        raise


class RevocableRun(TaskRunner):
    """The part of [`ContinualForgetter`] that revokes and redoes tasks."""

    def revoke(self, task: str, reason: str | None = None) -> TaskEntry:
        """Revokes a task: its adapter is no longer merged, and the ledger records the effect.

        Later tasks were trained on top of this one, so without it they act on slightly different weights. The revoked,
        the still forgotten and the kept classes are scored before and after, on the evaluation data (`acc_revoked`,
        `acc_still_forgotten`, `acc_retain`). The files of the task stay. If a later task left new values of weights
        that this one changed, it is refused: revoke that one first.

        Args:
            task (`str`):
                Name of the task, e.g. `"task_002"`.
            reason (`str`, *optional*):
                Why it is revoked; recorded in the ledger.

        Returns:
            [`TaskEntry`]: The entry with its `revocation`.

        Raises:
            LedgerError: If there is no such task in effect, or another process uses the folder. After any error,
                ledger and model are unchanged.
        """
        (entry,) = self.ledger.select([task])
        check_separable(self.ledger.tasks, [other.name for other in self.ledger.active_tasks if other is not entry])
        with self._locked(), self._merged.restored_on_error():
            scores = unmerge_task(entry, self.ledger, self._merged, self._scores)
            self._record(lambda: self.ledger.revoke(task, reason=reason, **scores))
        return next(revoked for revoked in self.ledger.tasks if revoked.name == task)

    def redo(self, task: str | None = None) -> TaskEntry:
        """Carries out the last request again with the present settings, and revokes its former task.

        The ledger records both when the new task is done. Until then, and after an error, the former task stays in
        effect. If the process is killed, the same call resumes from the last checkpoint. The revoked entry and the
        files of its task stay.

        Args:
            task (`str`, *optional*):
                Name of the task, e.g. `"task_003"`; by default the last one in effect. The name of a task that was
                redone stands for the task that replaced it. If that one has the present settings, nothing is trained.

        Returns:
            [`TaskEntry`]: The new entry.

        Raises:
            LedgerError: If there is no such task in effect, or later ones were trained on top of it.
            ValueError: As in [`~ContinualForgetter.forget`].
            NonFiniteLossError: As in [`~ContinualForgetter.forget`].
            OSError: As in [`~ContinualForgetter.forget`].
        """
        entry = task_to_redo(self.ledger, task)
        if task not in (None, entry.name) and not self._changed(entry, self.recipe):
            with self._locked():
                self._apply_targets({entry.name: self.recipe.args.max_forget_accuracy})
            return self.ledger.select([entry.name])[0]
        request, classes = request_of(entry), entry.classes or []
        split = self._split(classes, [old for old in self.ledger.forgotten_classes if old not in classes])
        with self._locked(), self._merged.restored_on_error(), tasks_restored_on_error(self.ledger):
            scores = unmerge_task(entry, self.ledger, self._merged, self._scores)
            self.ledger.revoke(entry.name, redone_as=self.ledger.next_task_name(), **scores)
            return self._carry_out(request, split, redoes=entry.name)


def _successor(ledger: ForgettingLedger, task: str) -> str:
    """Returns the task that replaced a redone task, or the task itself."""
    for entry in ledger.tasks:  # in order, so that a chain of them is followed to its end
        if entry.name == task and entry.revocation and entry.revocation.get("redone_as"):
            task = entry.revocation["redone_as"]
    return task
