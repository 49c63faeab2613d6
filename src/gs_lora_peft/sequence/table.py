"""The ledger as tables: one for text, a narrow one for terminals, and the columns that both share with the card."""

from __future__ import annotations

from collections.abc import Sequence

from ..metrics.measures import ACCURACY, AVERAGE_PRECISION, MetricName, measure_of
from ..reports import Table, percent
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .outcome import measure_of_entry, task_states
from .remarks import doubts, not_forgotten

# Of all scores, when they are taken and of which role; in the order of the columns.
SCORES = (
    ("before", "forget"),
    ("after", "forget"),
    ("base", "retain"),
    ("before", "retain"),
    ("after", "retain"),
    ("before", "old"),
    ("after", "old"),
    ("before", "missing"),
    ("after", "missing"),
)
_BASE = {
    ACCURACY: "Base model: {} % of all evaluation samples are right.",
    AVERAGE_PRECISION: "Base model: {} % average precision over all categories of the evaluation data.",
}
_TITLES = {ACCURACY: "Accuracies", AVERAGE_PRECISION: "Average precisions (AP@[.5:.95])"}
_LEGEND = (
    "{title} in percent{data}, before→after a task. {f}: classes to forget, {r}: kept classes, {o}: classes forgotten "
    "by earlier tasks; H: harmonic mean of {r} and the drop of {f}; groups: those that are not zero."
)


def format_table(ledger: ForgettingLedger) -> str:
    """Return the ledger as plain text: one row per task and, below, what is not as asked for.

    Scores are accuracies, or average precisions (AP) of a detector, in percent on the evaluation data. Acc_f: classes
    to forget, Acc_r: kept classes, Acc_o: classes forgotten by earlier tasks, Acc_m (only where there are any):
    classes kept without training data; before and after a task. Acc_r base: the base model on the kept classes. A line
    above gives the score of the base model on all classes. The outcome says whether a task's classes are forgotten
    (`max_forget_accuracy`), not forgotten, or came back with a later task.
    """
    return ledger_table(ledger).to_text()


def ledger_table(ledger: ForgettingLedger) -> Table:
    """The table of [`format_table`]."""
    entries = ledger.tasks
    has_missing = any(score(entry, "after", "missing") is not None for entry in entries)
    shown = [pair for pair in SCORES if pair != ("before", "old") and (pair[1] != "missing" or has_missing)]
    titles, scores = score_columns(entries, shown)
    has_outcome = any(entry.outcome is not None for entry in entries)
    verdicts = {state.entry.name: state.verdict for state in task_states(entries)}
    rows = [
        [
            entry.name + (" (revoked)" if entry.status == "revoked" else ""),
            _shortened(", ".join(names_to_forget(entry))),
            *values,
            active_groups(entry),
            size(entry, "steps"),
            *[verdicts.get(entry.name)] * has_outcome,
        ]
        for entry, values in zip(entries, scores, strict=True)
    ]
    header = ["task", "to forget", *titles, "active groups", "steps", *["outcome"] * has_outcome]
    base = base_score(entries)
    caption = "" if base is None else _BASE[measure_of_tasks(entries)].format(percent(base))
    return Table(header, rows, caption=caption, notes=[*not_forgotten(ledger), *doubts(ledger)])


def narrow_table(ledger: ForgettingLedger) -> Table:
    """The most important columns, for 80 characters; the note explains them."""
    entries, measure = ledger.tasks, measure_of_tasks(ledger.tasks)
    verdicts = {state.entry.name: state.verdict for state in task_states(entries)}
    rows = []
    for entry in entries:
        verdict = verdicts.get(entry.name, "revoked")
        changes = [
            f"{percent(score(entry, 'before', role))}→{percent(score(entry, 'after', role))}"
            for role in ("forget", "retain")
        ]
        rows.append(
            [
                entry.name,
                entry.finished_at[:10],
                ("" if verdict in ("forgotten", "–") else f"{verdict}: ") + ", ".join(names_to_forget(entry)),
                *changes,
                score(entry, "after", "old"),
                h_mean(entry),
                active_groups(entry, "/"),
            ]
        )
    symbols = {role[0]: measure.symbol_of(role) for role in ("forget", "retain", "old")}
    legend = _LEGEND.format(title=_TITLES[measure], data=_scored_on(entries), **symbols)
    header = ["task", "done on", "to forget", *symbols.values(), "H", "groups"]
    return Table(header, rows, align="lllrrrrr", notes=[legend])


def score_columns(
    entries: Sequence[TaskEntry], shown: Sequence[tuple[str, str]]
) -> tuple[list[str], list[list[float | None]]]:
    """The titles of some of [`SCORES`] and of H, and for each task their values."""
    measure = measure_of_tasks(entries)
    titles = [measure.symbol_of(role) + ("" if when == "after" else f" {when}") for when, role in shown]
    values = [[*(score(entry, *pair) for pair in shown), h_mean(entry)] for entry in entries]
    return [*titles, "H"], values


def score(entry: TaskEntry, when: str, role: str) -> float | None:
    """A score of a task as a rate; `None` where the ledger has none."""
    return _rate(entry, when, measure_of_entry(entry).key(role))


def h_mean(entry: TaskEntry) -> float | None:
    """H of a task as a rate; `None` where the ledger has none."""
    return _rate(entry, "after", "h_mean")


def base_score(entries: Sequence[TaskEntry]) -> float | None:
    """The score of the base model on all classes, as the last task recorded it."""
    found = [score(entry, "base", "all") for entry in entries]
    return next((value for value in reversed(found) if value is not None), None)


def active_groups(entry: TaskEntry, of: str = " of ") -> str | None:
    """How many groups of a task are not zero, `"8 of 12"`; `None` where the ledger does not say."""
    if "active" not in entry.groups:
        return None
    return f"{len(entry.groups['active'])}{of}{entry.groups.get('total', '–')}"


def size(entry: TaskEntry, name: str) -> str | None:
    """How many samples or steps a task had; `None` where the ledger does not say."""
    found = entry.sizes.get(name)
    return None if found is None else str(found)


def names_to_forget(entry: TaskEntry) -> list[str]:
    """The names, else the ids, of the classes of a task."""
    return [str(name) for name in entry.class_names or entry.classes or ["withheld"]]


def measure_of_tasks(entries: Sequence[TaskEntry]) -> MetricName:
    """The measure that the tasks of a ledger were scored by."""
    return measure_of(*(entry.scores.get(when, {}) for entry in entries for when in ("before", "after")))


def _rate(entry: TaskEntry, when: str, name: str) -> float | None:
    value = entry.scores.get(when, {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _scored_on(entries: Sequence[TaskEntry]) -> str:
    """The data that the tasks were scored on, if it is the same for all."""
    names = {entry.scores.get("data") for entry in entries}
    name = names.pop() if len(names) == 1 else None
    return f" on the data '{name}'" if name else ""


def _shortened(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
