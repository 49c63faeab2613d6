"""The outcome of a run in plain sentences and as a table."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics import ACCURACY, AVERAGE_PRECISION, MetricName, measure_of
from ..reports import Table, percent, short_percent
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .outcome import TaskState, is_forgotten, measure_of_entry, target_score, task_states

_NAMES_SHOWN = 3


_REMEDY = (
    "To forget more, raise num_train_epochs, learning_rate, the rank r, forget_weight or forget_bound, or lower "
    'sparsity_weight. Then repeat the request: forgetter.redo("{name}"), or --redo of the examples. If this score is '
    "low enough for you, raise max_forget_accuracy and run the same requests again; this trains nothing."
)


logger = logging.getLogger(__name__)


def not_forgotten(
    ledger: ForgettingLedger, *, tasks: int | Sequence[str] | None = None, withheld: bool = False
) -> list[str]:
    """Return a sentence for every task in effect that is not forgotten, or not any more.

    Args:
        ledger ([`ForgettingLedger`]):
            The run.
        tasks (`int` or `Sequence[str]`, *optional*):
            As in [`ForgettingLedger.select`]; by default all.
        withheld (`bool`, *optional*, defaults to `False`):
            Names no class.

    Returns:
        `list[str]`: The sentences, with the names of classes as they are: escape them for Markdown.
    """
    names = {entry.name for entry in ledger.select(tasks)}
    states = [state for state in task_states(ledger.tasks) if state.entry.name in names and state.forgotten is False]
    return [_still_known(state, _Words(ledger, state.entry, withheld)) for state in states]


def doubts(ledger: ForgettingLedger, *, tasks: int | Sequence[str] | None = None, withheld: bool = False) -> list[str]:
    """Return a sentence for everything that makes the scores of tasks in effect doubtful.

    That is: no samples to measure on, classes that were not known before, scores on training data. Arguments and
    result are those of [`not_forgotten`].
    """
    entries = ledger.select(tasks)
    lines = []
    for entry in entries:
        words = _Words(ledger, entry, withheld)
        if entry.outcome is not None and entry.forgotten is None:
            lines.append(f"It is not known whether {entry.name} is forgotten: there are no {words.samples} to score.")
        if (entry.outcome or {}).get("known_before") is False:
            lines.append(nothing_known(entry.name, words.classes, entry.scores.get("before", {}), entry.target))
    if on_training_data := [entry.name for entry in entries if entry.scores.get("data") == "train"]:
        lines.append(
            f"The scores of {', '.join(on_training_data)} were taken on the training data, as there was no other: "
            "they say nothing about samples not seen in training."
        )
    return lines


def nothing_known(task: str, classes: str, before: Mapping[str, Any], target: float | None) -> str:
    """Return the sentence for a task whose classes met the target already before it."""
    score = short_percent(before.get(measure_of(before).key("forget")))
    return (
        f"There was nothing to forget in {task}, as measured: the score on {classes} was {score} % before, and the "
        f"target is at most {short_percent(target)} %. Probable causes: the target is too high; the labels have other "
        "numbers than in the model; the data is not preprocessed as in the training of the model (another image "
        "processor, tokenizer or feature extractor); or an earlier request already removed these classes."
    )


def warn_before(
    ledger: ForgettingLedger, classes: Sequence[str], before: Mapping[str, Any], allowed: float | str
) -> None:
    """Log that there is nothing to forget, before hours of training.

    Args:
        ledger ([`ForgettingLedger`]):
            The tasks before this one.
        classes (`Sequence[str]`):
            Names of the classes to forget.
        before (`Mapping[str, Any]`):
            Scores before the task.
        allowed (`float` or `"auto"`):
            As in [`target_score`].
    """
    target = target_score(allowed, before, ledger.base_model.get("num_labels"))
    if is_forgotten(before, target):
        logger.warning("%s", nothing_known(ledger.next_task_name(), class_list(classes), before, target))


def warn_after(ledger: ForgettingLedger, tasks: Sequence[str]) -> None:
    """Log which of these tasks are not forgotten, which earlier ones they brought back, and what to do about it."""
    for state in task_states(ledger.tasks):
        name = state.entry.name
        if state.forgotten is False and (name in tasks or (state.came_back and state.measured_after in tasks)):
            logger.warning("%s %s", *not_forgotten(ledger, tasks=[name]), _REMEDY.format(name=name))
        if state.entry.outcome is not None and state.entry.forgotten is None and name in tasks:
            logger.warning("%s", doubts(ledger, tasks=[name])[0])


def warn_where_it_goes(ledger: ForgettingLedger, tasks: int | Sequence[str] | None = None) -> None:
    """Warn of tasks that are not forgotten when a run is published or exported; name no class."""
    if lines := not_forgotten(ledger, tasks=tasks, withheld=True):
        warnings.warn("\n".join(lines), stacklevel=3)


class _Words:
    """What the sentences call the classes of a task and their samples."""

    def __init__(self, ledger: ForgettingLedger, entry: TaskEntry, withheld: bool):
        kind = "images" if re.search("Image|Face", str(ledger.base_model.get("model_class"))) else "samples"
        self.classes = "the withheld classes"
        if entry.classes is not None and not withheld:
            self.classes = class_list(entry.class_names or [f"class {c}" for c in entry.classes])
        self.samples = f"{kind} of {self.classes}"


def class_list(names: Sequence[str]) -> str:
    """Return the names for a sentence: all of a few, the first ones of many."""
    shown = list(names[:_NAMES_SHOWN])
    rest = len(names) - len(shown)
    parts = [*shown, f"{rest} other{'s' if rest > 1 else ''}"] if rest else shown
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _still_known(state: TaskState, words: _Words) -> str:
    entry, limit = state.entry, short_percent(state.entry.target)
    score = short_percent(state.score)
    if score == limit:  # they differ by less than is shown
        score = f"more than {score}"
    goal = f"target: at most {limit} %" if entry.target is not None else "above the target"
    when = f"after {state.measured_after}, " if state.came_back else ""
    still, again = ("", " again") if state.came_back else (" still", "")
    if measure_of_entry(entry) == AVERAGE_PRECISION:
        before = entry.scores.get("before", {}).get(AVERAGE_PRECISION.key("forget"))
        was = "" if before is None else f"{short_percent(before)} % before the request; "
        how = f"with an average precision of {score} % ({was}{goal})"
        what = f"objects of {words.classes} are{still} found{again} {how}"
    else:
        what = f"{score} % of the {words.samples} are{still} recognised{again} ({goal})"
    return f"{entry.name} {'came back' if state.came_back else 'is not forgotten'}: {when}{what}."


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
