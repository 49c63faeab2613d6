"""Whether what was to be forgotten is forgotten: the target, and the verdict on every task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics import AVERAGE_PRECISION, MetricName, measure_of
from .entry import TaskEntry
from .ledger import ForgettingLedger

NOT_FORGOTTEN_STATUS = 3  # with this a program ends whose run did not forget all it was asked to


AUTO_TARGET = 0.05


def target_score(allowed: float | str, before: Mapping[str, Any], num_labels: int | None) -> float | None:
    """The largest score of the classes to forget that counts as forgotten.

    Args:
        allowed (`float` or `"auto"`):
            `max_forget_accuracy` of [`GSLoraTrainingArguments`].
        before (`Mapping[str, Any]`):
            Scores before the task. Of a detector's average precision `allowed` is the share that may be left: what a
            good AP is differs from data set to data set.
        num_labels (`int`, *optional*):
            Number of classes of the head, whose inverse is the accuracy of guessing.

    Returns:
        `float` or `None`: From 0 to 1, in the unit of the scores; `None` for a share of what was not measured.
    """
    measure = measure_of(before)
    if measure == AVERAGE_PRECISION:
        known = before.get(measure.key("forget"))
        share = AUTO_TARGET if isinstance(allowed, str) else allowed
        return None if known is None else share * known
    if isinstance(allowed, str):
        return max(AUTO_TARGET, 1 / num_labels if num_labels else 0.0)
    return allowed


def outcome_of_task(
    allowed: float | str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    earlier: Mapping[str, float],
    ledger: ForgettingLedger,
) -> dict[str, Any]:
    """What the ledger records of whether a task, and with it each earlier one, is forgotten.

    Args:
        allowed (`float` or `"auto"`):
            As in [`target_score`].
        before:
            Scores before and after the task.
        after (`Mapping[str, Any]`):
            Scores before and after the task.
        earlier (`Mapping[str, float]`):
            After it, the score on the classes of each earlier task in effect that the evaluation data have samples of.
        ledger ([`ForgettingLedger`]):
            The earlier tasks.

    Returns:
        `dict`: `forgotten` (`None` where there was nothing to measure it on), the `target`, `known_before` (whether.
        the score before was above it), and `earlier`: `score` and `forgotten` by name of the task.
    """
    num_labels = ledger.base_model.get("num_labels")
    target = target_score(allowed, before, num_labels)
    others = {}
    for entry in ledger.active_tasks:
        limit = entry.target
        if limit is None:  # made before targets were recorded
            limit = target_score(allowed, entry.scores.get("before", {}), num_labels)
        if entry.name in earlier and limit is not None:
            score = earlier[entry.name]
            others[entry.name] = {"score": score, "forgotten": score <= limit}
    return {**verdict(before, after, target), "earlier": others}


def verdict(before: Mapping[str, Any], after: Mapping[str, Any], target: float | None) -> dict[str, Any]:
    """What an outcome says of the task itself: `forgotten`, `target` and `known_before`, see [`outcome_of_task`]."""
    was_forgotten = is_forgotten(before, target)
    known_before = None if was_forgotten is None else not was_forgotten
    return {"forgotten": is_forgotten(after, target), "target": target, "known_before": known_before}


def is_forgotten(scores: Mapping[str, Any], target: float | None) -> bool | None:
    """Whether the score of the classes to forget is the target at most; `None` where one of both is not known."""
    score = scores.get(measure_of(scores).key("forget"))
    return None if score is None or target is None else score <= target


@dataclass(frozen=True)
class TaskState:
    """
    Whether a task in effect is forgotten, as measured last.

    Attributes:
        entry ([`TaskEntry`]):
            The task.
        forgotten (`bool` or `None`):
            `None` where that is not known.
        score (`float` or `None`):
            Accuracy or average precision on its classes, from 0 to 1.
        measured_after (`str`):
            The task after which that was measured: itself, or a later one.
    """

    entry: TaskEntry
    forgotten: bool | None
    score: float | None
    measured_after: str

    @property
    def came_back(self) -> bool:
        """Whether its classes were forgotten once and are recognised again."""
        if self.forgotten is not False or self.entry.forgotten is False:
            return False
        own = score_of(self.entry)  # all there is of a task whose outcome was not recorded
        return bool(self.entry.forgotten) or (own is not None and self.score is not None and own < self.score)

    @property
    def verdict(self) -> str:
        """In a word or two; a dash for a task of a ledger that was made before outcomes were recorded."""
        if self.entry.outcome is None and self.forgotten is None:
            return "–"
        if self.came_back:
            return "came back"
        return {True: "forgotten", False: "not forgotten", None: "not known"}[self.forgotten]


def task_states(entries: Iterable[TaskEntry]) -> list[TaskState]:
    """The state of every task in effect, in order. A later task measures the classes of the earlier ones anew."""
    active = [entry for entry in entries if entry.status != "revoked"]
    states = []
    for place, entry in enumerate(active):
        state = TaskState(entry, entry.forgotten, score_of(entry), entry.name)
        for later in active[place + 1 :]:
            found = (later.outcome or {}).get("earlier", {}).get(entry.name)
            if found is not None:
                state = TaskState(entry, found.get("forgotten"), found.get("score"), later.name)
        states.append(state)
    return states


def all_forgotten(entries: Iterable[TaskEntry]) -> bool | None:
    """Whether every task in effect is forgotten; `None` where no task is known not to be, but not all are known."""
    found = [state.forgotten for state in task_states(entries)]
    return False if False in found else True if found and None not in found else None


def exit_status(ledger: ForgettingLedger) -> int:
    """What a program ends with that carried out a run, or reports on one: 3 if a task is not forgotten, else 0."""
    return NOT_FORGOTTEN_STATUS if all_forgotten(ledger.tasks) is False else 0


def measure_of_entry(entry: TaskEntry) -> MetricName:
    """By what a task was scored."""
    return measure_of(*(entry.scores.get(when, {}) for when in ("before", "after")))


def score_of(entry: TaskEntry) -> float | None:
    """The score on the classes of a task after it."""
    return entry.scores.get("after", {}).get(measure_of_entry(entry).key("forget"))
