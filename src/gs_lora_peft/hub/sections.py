"""What a card says of each task: tables and sentences, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..data.evaluation import EVALUATION_SPLITS
from ..metrics.measures import ACCURACY, AVERAGE_PRECISION
from ..sequence import TaskEntry, task_states
from ..sequence.remarks import short_percent
from ..sequence.table import measure_of_tasks
from ..storage import code_span
from ..tables import percent
from .labels import shortened_names
from .markdown import escape, table, task_ranges
from .scored import revoked_since, scored_last

# When each score was taken, and of which role.
_SCORES = (
    ("before", "forget"),
    ("after", "forget"),
    ("base", "retain"),
    ("before", "retain"),
    ("after", "retain"),
    ("before", "old"),
    ("after", "old"),
)
# What scores are, what is said of the base model's, and how they came about.
MEASURE_TEXTS = {
    ACCURACY: {
        "title": "Accuracies",
        "base": "The base model answers {} % of all evaluation samples right.",
        "how": "Answers are the class with the largest logit, and an accuracy is the share of right ones.",
    },
    AVERAGE_PRECISION: {
        "title": "Average precisions",
        "base": "The base model's average precision over all categories is {} %.",
        "how": "Scores are COCO's AP@[.5:.95], the mean over overlaps (IoU) and categories, with no threshold on "
        "the confidence.",
    },
}
_MEASURED_ON = {
    **{name: f"the `{name}` split of the data, which was not trained on" for name in EVALUATION_SPLITS},
    "eval_dataset": "a data set of its own, given for scoring alone",
    "train": "**the training data itself**",
}


def requests(entries: Sequence[TaskEntry], *, withheld: bool) -> str:
    """What was asked and when."""
    rows = []
    for entry in entries:
        shown = _day if withheld or entry.classes is None else _moment
        status = "in effect"
        if entry.status == "revoked":
            status = f"revoked {shown((entry.revocation or {}).get('revoked_at'))}"
        asked, done = shown(entry.request.get("requested_at")), shown(entry.finished_at)
        rows.append([entry.name, _classes(entry, withheld), asked, done, status])
    return table(["Task", "To forget", "Asked", "Done", "Status"], rows)


def _classes(entry: TaskEntry, withheld: bool) -> str:
    if withheld or entry.classes is None:
        digest = entry.request.get("digest")
        return f"withheld ({escape(digest[:24])}…)" if isinstance(digest, str) else "withheld"
    return ", ".join(map(escape, entry.class_names or [f"class {class_id}" for class_id in entry.classes]))


def _day(text: Any) -> str:
    return escape(text[:10]) if isinstance(text, str) else "–"


def _moment(text: Any) -> str:
    return escape(text[:16].replace("T", " ")) + " UTC" if isinstance(text, str) else "–"


def scores(entries: Sequence[TaskEntry]) -> str:
    """Scores of each task before and after, in percent."""
    measure = measure_of_tasks(entries)
    titles = [measure.symbol_of(role) + (f" {when}" if when != "after" else "") for when, role in _SCORES]
    header = ["Task", *titles, "H"]
    rows = []
    for entry in entries:
        values = [entry.scores.get(when, {}).get(measure.key(role)) for when, role in _SCORES]
        values.append(entry.scores.get("after", {}).get("h_mean"))
        star = "\\*" if entry.status == "revoked" or revoked_since(entry, entries) else ""
        rows.append([entry.name + star, *map(percent, values), f"{len(_active(entry))} of {_total(entry)}"])
    return table([*header, "active groups"], rows)


def verdict(entries: Sequence[TaskEntry]) -> str:
    """Which tasks are forgotten, and by how much; empty where none is, or where that is not known."""
    states = [state for state in task_states(entries) if state.forgotten]
    worst = max((state.score for state in states if state.score is not None), default=None)
    if worst is None:
        return ""
    measure, names = measure_of_tasks(entries), task_ranges([state.entry.name for state in states])
    targets = [state.entry.target for state in states if state.entry.target is not None]
    goal = f" (the target was at most {short_percent(max(targets))} %)" if targets else ""
    many = len(states) > 1
    known = f"{short_percent(worst)} % of the samples of {'their' if many else 'its'} classes are still recognised"
    if measure == AVERAGE_PRECISION:
        known = f"{'their' if many else 'its'} classes are found with an average precision of {short_percent(worst)} %"
    return f"{names} {'are' if many else 'is'} forgotten as measured: {'at most ' * many}{known}{goal}."


def base_score(entries: Sequence[TaskEntry]) -> str | None:
    """How the base model does on all evaluation data, in percent."""
    key = measure_of_tasks(entries).key("all")
    values = [entry.scores["base"][key] for entry in entries if key in entry.scores.get("base", {})]
    return percent(values[-1]) if values else None


def groups(entries: Sequence[TaskEntry], *, withheld: bool) -> str:
    """Which groups each task changes, and how it was trained."""
    names = list(dict.fromkeys(name for entry in entries for name in (*_active(entry), *entry.groups.get("zero", []))))
    prefix, labels = shortened_names(names, longest=10**6)
    label_of = dict(zip(names, labels, strict=True))
    header = ["Task", f"Active groups (of {escape(prefix)})" if prefix else "Active groups"]
    counts = {} if withheld else {"Steps": "steps", "Samples to forget": "forget", "Samples to keep": "retain"}
    rows = []
    for entry in entries:
        which = ", ".join(escape(label_of[name]) for name in _active(entry)) or "none: the adapter changes nothing"
        rows.append([entry.name, which, *(escape(entry.sizes.get(name, "–")) for name in counts.values())])
    return table([*header, *counts], rows)


def _active(entry: TaskEntry) -> list[str]:
    return entry.groups.get("active", [])


def _total(entry: TaskEntry) -> str:
    return str(entry.groups.get("total", "–"))


def revocations(entries: Sequence[TaskEntry]) -> str:
    """What taking tasks back did; empty where that was not measured."""
    names = [measure_of_tasks(entries).key(of) for of in ("revoked", "still_forgotten", "retain")]
    rows = []
    for entry in entries:
        before, after = ((entry.revocation or {}).get(f"scores_{when}") or {} for when in ("before", "after"))
        if before or after:
            rows.append([entry.name, *(f"{percent(before.get(name))} → {percent(after.get(name))}" for name in names)])
    return table(["Revoked", "Its classes", "Classes still forgotten", "Kept classes"], rows) if rows else ""


def present_state(entries: Sequence[TaskEntry]) -> str:
    """Which of the scores are those of the adapter in the root of the repository."""
    last = scored_last(entries)
    if last is None:
        return ""
    if last.status != "revoked":
        where = f"The row of {last.name} is" if last.scores.get("after") else "There are no scores of"
        return f"{where} the adapter in the root of this repository, which holds all tasks in effect."
    if (last.revocation or {}).get("scores_after"):
        return f"The adapter in the root of this repository was last scored when {last.name} was revoked, see below."
    return f"The adapter in the root of this repository was not scored after {last.name} was revoked."


def outdated(entries: Sequence[TaskEntry]) -> str:
    """What the stars in the table of scores mean; empty where there is none."""
    revoked = [entry.name for entry in entries if entry.status == "revoked"]
    stale = [entry.name for entry in entries if entry.status != "revoked" and revoked_since(entry, entries)]
    text = f"\\* {task_ranges(revoked)}: revoked; these are the scores from before." if revoked else ""
    if stale:
        text += f" {task_ranges(stale)}: scored while a task that has been revoked since was in effect."
    return text.strip()


def measured_on(entries: Sequence[TaskEntry]) -> list[str]:
    """On which data the scores were measured, and which tasks have none."""
    lines = []
    scored = [entry for entry in entries if entry.scores.get("after")]
    for data, names in _by_value(scored, lambda entry: entry.scores.get("data")):
        what = _MEASURED_ON.get(
            data, code_span(data) if isinstance(data, str) else "data that the ledger does not name"
        )
        lines.append(f"The scores of {task_ranges(names)} were measured on {what}.")
    if missing := [entry.name for entry in entries if not entry.scores.get("after")]:
        lines.append(f"The ledger holds no scores of {task_ranges(missing)}.")
    return lines


def settings(entries: Sequence[TaskEntry]) -> str:
    """Adapter, training and data settings; where tasks differ, each value with its tasks."""
    return _values(["Setting", "Value"], entries, lambda entry: dict(_flat(entry.settings)))


def versions(entries: Sequence[TaskEntry]) -> str:
    """Versions of what computed; where tasks differ, each with its tasks."""
    return _values(["Library", "Version"], entries, lambda entry: entry.versions)


def _values(header: list[str], entries: Sequence[TaskEntry], of: Callable[[TaskEntry], Mapping[str, Any]]) -> str:
    rows = []
    for key in dict.fromkeys(key for entry in entries for key in of(entry)):
        values = _by_value(entries, lambda entry, key=key: of(entry).get(key))  # type: ignore[misc]
        texts = [_plain(value) + (f" ({task_ranges(names)})" if len(values) > 1 else "") for value, names in values]
        rows.append([escape(key), "; ".join(texts)])
    return table(header, rows) if rows else "Not recorded."


def _by_value(entries: Sequence[TaskEntry], of: Callable[[TaskEntry], Any]) -> list[tuple[Any, list[str]]]:
    """The values that tasks have, in order of appearance, each with the names of its tasks."""
    found: list[tuple[Any, list[str]]] = []
    for entry in entries:
        value = of(entry)
        names = next((names for other, names in found if other == value), None)
        if names is None:
            found.append((value, names := []))
        names.append(entry.name)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    return (
        "–"
        if value is None or value == {}
        else escape(", ".join(map(str, value)) if isinstance(value, list) else value)
    )
