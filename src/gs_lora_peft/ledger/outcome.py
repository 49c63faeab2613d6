"""Whether tasks are forgotten: the target score, the outcome of each task, and its state after later tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics import AVERAGE_PRECISION, MetricName, measure_of
from .entry import TaskEntry
from .ledger import ForgettingLedger

NOT_FORGOTTEN_STATUS = 3  # exit status of a command if a task of the run is not forgotten
AUTO_TARGET = 0.05


def metric_of(*entries: TaskEntry) -> MetricName:
    """Returns the metric that tasks were scored by; accuracy if there are no scores."""
    return measure_of(*(entry.scores.get(when, {}) for entry in entries for when in ("before", "after")))


def target_score(allowed: float | str, before: Mapping[str, Any], num_labels: int | None) -> float | None:
    """Returns the largest score on the classes to forget that counts as forgotten.

    Args:
        allowed (`float` or `"auto"`):
            `max_forget_accuracy` of [`GSLoraTrainingArguments`].
        before (`Mapping[str, Any]`):
            Scores before the task. For a detector, `allowed` is relative to the average precision here, because a good
            AP differs between data sets.
        num_labels (`int`, *optional*):
            Number of classes of the head. `"auto"` never goes below chance, `1 / num_labels`.

    Returns:
        `float` or `None`: The target from 0 to 1; `None` for a detector without a score before the task.
    """
    metric = measure_of(before)
    if metric == AVERAGE_PRECISION:
        known = before.get(metric.key("forget"))
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
    """Returns the outcome of a task as the ledger records it: is it forgotten, and are the earlier tasks still?

    Args:
        allowed (`float` or `"auto"`):
            As in [`target_score`].
        before (`Mapping[str, Any]`):
            Scores before the task.
        after (`Mapping[str, Any]`):
            Scores after the task.
        earlier (`Mapping[str, float]`):
            Name of an earlier task in effect → score on its classes after this task. Tasks without evaluation samples
            are absent.
        ledger ([`ForgettingLedger`]):
            The ledger with the earlier tasks.

    Returns:
        `dict[str, Any]`: `forgotten` (`None` without samples to measure on), `target`, `known_before` (whether the
        score before the task was above the target), and `earlier`: name of the task → `score` and `forgotten`.
    """
    num_labels = ledger.base_model.get("num_labels")
    target = target_score(allowed, before, num_labels)
    others = {}
    for entry in ledger.active_tasks:
        limit = entry.target
        if limit is None:  # older ledgers do not record targets
            limit = target_score(allowed, entry.scores.get("before", {}), num_labels)
        if entry.name in earlier and limit is not None:
            score = earlier[entry.name]
            others[entry.name] = {"score": score, "forgotten": _reached(score, limit)}
    return {**_own_outcome(before, after, target), "earlier": others}


def _own_outcome(before: Mapping[str, Any], after: Mapping[str, Any], target: float | None) -> dict[str, Any]:
    """Returns `forgotten`, `target` and `known_before` of an outcome, see [`outcome_of_task`]."""
    was_forgotten = is_forgotten(before, target)
    known_before = None if was_forgotten is None else not was_forgotten
    return {"forgotten": is_forgotten(after, target), "target": target, "known_before": known_before}


def is_forgotten(scores: Mapping[str, Any], target: float | None) -> bool | None:
    """Whether the score on the classes to forget is at most the target; `None` if either is unknown."""
    return _reached(scores.get(measure_of(scores).key("forget")), target)


def updated_outcomes(ledger: ForgettingLedger, allowed: Mapping[str, float | str]) -> dict[str, dict[str, Any]]:
    """Computes the outcomes that change if tasks in effect get other targets; the ledger stays unchanged.

    An outcome also covers earlier tasks, so that of a later task may change as well. Tasks without a recorded outcome
    (older ledgers) stay as they are.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger with the recorded scores.
        allowed (`Mapping[str, float | "auto"]`):
            Name of a task → `max_forget_accuracy`, as in [`target_score`].

    Returns:
        `dict[str, dict[str, Any]]`: Name of a task → new outcome, only for those that change.
    """
    recorded = [entry for entry in ledger.active_tasks if entry.outcome is not None]
    targets: dict[str, float | None] = {}
    for entry in recorded:
        if entry.name in allowed:
            before, num_labels = entry.scores.get("before", {}), ledger.base_model.get("num_labels")
            target = target_score(allowed[entry.name], before, num_labels)
            targets |= {entry.name: target} if target != entry.target else {}
    outcomes = {}
    for entry in recorded:
        outcome = dict(entry.outcome or {})
        if entry.name in targets:
            before, after = (entry.scores.get(when, {}) for when in ("before", "after"))
            outcome |= _own_outcome(before, after, targets[entry.name])
        if "earlier" in outcome:
            outcome["earlier"] = {
                name: {**found, "forgotten": _reached(found.get("score"), targets[name])} if name in targets else found
                for name, found in outcome["earlier"].items()
            }
        if outcome != entry.outcome:
            outcomes[entry.name] = outcome
    return outcomes


def _reached(score: float | None, target: float | None) -> bool | None:
    return None if score is None or target is None else score <= target


@dataclass(frozen=True)
class TaskState:
    """Whether a task in effect is forgotten, by its latest measurement.

    Args:
        entry ([`TaskEntry`]):
            The task.
        forgotten (`bool` or `None`):
            Whether it is forgotten; `None` if unknown.
        score (`float` or `None`):
            Accuracy or average precision on its classes, from 0 to 1.
        measured_after (`str`):
            Name of the task after which the score was measured: this one or a later one.
    """

    entry: TaskEntry
    forgotten: bool | None
    score: float | None
    measured_after: str

    @property
    def came_back(self) -> bool:
        """Whether its classes were forgotten and are recognised again."""
        if self.forgotten is not False or self.entry.forgotten is False:
            return False
        own = _score_after(self.entry)  # entries of older ledgers have scores but no outcome
        return bool(self.entry.forgotten) or (own is not None and self.score is not None and own < self.score)

    @property
    def verdict(self) -> str:
        """`"forgotten"`, `"not forgotten"`, `"came back"`, `"not known"`, or `"–"` if no outcome is recorded."""
        if self.entry.outcome is None and self.forgotten is None:
            return "–"
        if self.came_back:
            return "came back"
        return {True: "forgotten", False: "not forgotten", None: "not known"}[self.forgotten]


def task_states(entries: Iterable[TaskEntry]) -> list[TaskState]:
    """Returns the state of every task in effect, in order. Later tasks measure the classes of earlier ones again."""
    active = [entry for entry in entries if entry.status != "revoked"]
    states = []
    for place, entry in enumerate(active):
        state = TaskState(entry, entry.forgotten, _score_after(entry), entry.name)
        for later in active[place + 1 :]:
            found = (later.outcome or {}).get("earlier", {}).get(entry.name)
            if found is not None:
                state = TaskState(entry, found.get("forgotten"), found.get("score"), later.name)
        states.append(state)
    return states


def all_forgotten(entries: Iterable[TaskEntry]) -> bool | None:
    """Whether every task in effect is forgotten; `None` if some are unknown and no task is known to fail."""
    found = [state.forgotten for state in task_states(entries)]
    return False if False in found else True if found and None not in found else None


def exit_status(ledger: ForgettingLedger) -> int:
    """Returns the exit status of a command that carries out or shows a run: 3 if a task is not forgotten, else 0."""
    return NOT_FORGOTTEN_STATUS if all_forgotten(ledger.tasks) is False else 0


def _score_after(entry: TaskEntry) -> float | None:
    """Returns the score on the classes of a task right after it."""
    return entry.scores.get("after", {}).get(metric_of(entry).key("forget"))
