"""The ledger as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics.measures import ACCURACY, AVERAGE_PRECISION, MetricName, measure_of
from ..tables import aligned, percent
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .outcome import task_states
from .remarks import doubts, not_forgotten

# Of the scores, when they were taken and of which role.
_SCORES = (
    ("before", "forget"),
    ("after", "forget"),
    ("base", "retain"),
    ("before", "retain"),
    ("after", "retain"),
    ("after", "old"),
    ("before", "missing"),
    ("after", "missing"),
)
_BASE = {
    ACCURACY: "{} % of all evaluation samples are right",
    AVERAGE_PRECISION: "{} % average precision over all categories of the evaluation data",
}


def format_table(ledger: ForgettingLedger) -> str:
    """Plain text, one row per task: accuracies, or a detector's average precisions (AP), in percent on the evaluation
    data, and how many groups are not zero.

    Acc_f: forgotten classes, Acc_r: kept classes, Acc_o: classes forgotten by earlier tasks, Acc_m (only where there
    are any): classes kept without training data; before and after a task.
    Acc_r base: the base model on the kept classes. A line above says how the base model does on all classes.
    The outcome says whether a task's classes are forgotten (`max_forget_accuracy`), not forgotten, or came back with
    a later task; lines below the table say more where it is not as asked for, or the scores say little.
    """
    measure = measure_of_tasks(ledger.tasks)
    has_missing = any(entry.scores.get("after", {}).get(measure.key("missing")) is not None for entry in ledger.tasks)
    shown = [(when, role) for when, role in _SCORES if role != "missing" or has_missing]
    titles = [measure.symbol_of(role) + (f" {when}" if when != "after" else "") for when, role in shown]
    verdicts = {state.entry.name: state.verdict for state in task_states(ledger.tasks)}
    has_outcome = any(entry.outcome is not None for entry in ledger.tasks)
    rows = [("task", "to forget", *titles, "H", "active groups", "steps", *["outcome"] * has_outcome)]
    for entry in ledger.tasks:
        rows.append(
            (
                entry.name + (" (revoked)" if entry.status == "revoked" else ""),
                _shortened(entry.class_names or entry.classes or ["withheld"]),
                *(percent(entry.scores.get(when, {}).get(measure.key(role))) for when, role in shown),
                percent(entry.scores.get("after", {}).get("h_mean")),
                f"{len(entry.groups.get('active', []))} of {entry.groups.get('total', 0)}",
                str(entry.sizes.get("steps", "")),
                *[verdicts.get(entry.name, "–")] * has_outcome,
            )
        )
    of_base = [entry.scores.get("base", {}).get(measure.key("all")) for entry in ledger.tasks]
    known = [percent(score) for score in of_base if score is not None]
    title = [f"Base model: {_BASE[measure].format(known[0])}.", ""] if known else []
    remarks = [*not_forgotten(ledger), *doubts(ledger)]
    return "\n".join([*title, *aligned(rows), *([""] if remarks else []), *remarks])


def measure_of_tasks(entries: Sequence[TaskEntry]) -> MetricName:
    """By what the tasks of a ledger were scored."""
    return measure_of(*(entry.scores.get(when, {}) for entry in entries for when in ("before", "after")))


def _shortened(names: Sequence[Any], limit: int = 30) -> str:
    text = ", ".join(map(str, names))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
