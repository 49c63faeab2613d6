"""The outcome of a run as sentences, warnings and tables."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics import ACCURACY, AVERAGE_PRECISION, measure_of
from ..reports import Table, percent, short_percent
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .outcome import TaskState, is_forgotten, metric_of, target_score, task_states

logger = logging.getLogger(__name__)

# Columns of the table, in order: when a score is taken, and on which role of classes.
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

_NAMES_SHOWN = 3

# What sentences call the classes of a task: where the ledger withholds them, and in logs.
_WITHHELD, _UNNAMED = "the withheld classes", "its classes"

_REMEDY = (
    'To forget more, {changes}. Then repeat the request: forgetter.redo("{name}"), or `gs-lora redo`. If this score '
    "is low enough for you, raise max_forget_accuracy and run the same requests again; this trains nothing."
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


def not_forgotten(
    ledger: ForgettingLedger, *, tasks: int | Sequence[str] | None = None, withheld: bool = False
) -> list[str]:
    """Returns a sentence for every task in effect that is not forgotten, or whose classes came back.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        tasks (`int` or `Sequence[str]`, *optional*):
            As in [`ForgettingLedger.select`]; by default all.
        withheld (`bool`, *optional*, defaults to `False`):
            Whether to leave out the names of classes.

    Returns:
        `list[str]`: The sentences. Class names are not escaped for Markdown.
    """
    names = {entry.name for entry in ledger.select(tasks)}
    states = [state for state in task_states(ledger.tasks) if state.entry.name in names and state.forgotten is False]
    return [_still_known(state, _Words(ledger, state.entry, withheld)) for state in states]


def doubts(ledger: ForgettingLedger, *, tasks: int | Sequence[str] | None = None, withheld: bool = False) -> list[str]:
    """Returns a sentence for every reason to doubt the scores of tasks in effect.

    The reasons: no samples to measure on, classes that the model did not know before, scores on training data.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        tasks (`int` or `Sequence[str]`, *optional*):
            As in [`not_forgotten`].
        withheld (`bool`, *optional*, defaults to `False`):
            As in [`not_forgotten`].

    Returns:
        `list[str]`: As in [`not_forgotten`].
    """
    entries = ledger.select(tasks)
    lines = []
    for entry in entries:
        words = _Words(ledger, entry, withheld)
        if entry.outcome is not None and entry.forgotten is None:
            lines.append(f"Whether {entry.name} is forgotten is not known: there are no {words.samples} to score.")
        if (entry.outcome or {}).get("known_before") is False:
            lines.append(nothing_known(entry.name, words.classes, entry.scores.get("before", {}), entry.target))
    if on_training_data := [entry.name for entry in entries if entry.scores.get("data") == "train"]:
        lines.append(
            f"The scores of {', '.join(on_training_data)} were measured on the training data: they say nothing about "
            "samples not seen in training."
        )
    return lines


def nothing_known(task: str, classes: str, before: Mapping[str, Any], target: float | None) -> str:
    """Returns the sentence for a task whose classes met the target before it already."""
    score = short_percent(before.get(measure_of(before).key("forget")))
    return (
        f"There was nothing to forget in {task}, as measured: the score on {classes} was {score} % before, and the "
        f"target is at most {short_percent(target)} %. Probable causes: the target is too high; the labels have other "
        "ids than in the model; the data is not preprocessed as in the training of the model (another image "
        "processor, tokenizer or feature extractor); or an earlier request already removed these classes."
    )


def warn_before(ledger: ForgettingLedger, before: Mapping[str, Any], allowed: float | str) -> None:
    """Logs a warning before training if the classes meet the target already. It names none of them.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger with the earlier tasks.
        before (`Mapping[str, Any]`):
            Scores before the task.
        allowed (`float` or `"auto"`):
            As in [`target_score`].
    """
    target = target_score(allowed, before, ledger.base_model.get("num_labels"))
    if is_forgotten(before, target):
        logger.warning("%s", nothing_known(ledger.next_task_name(), _UNNAMED, before, target))


def warn_after(ledger: ForgettingLedger, tasks: Sequence[str]) -> None:
    """Logs which of these tasks are not forgotten, which earlier tasks they brought back, and the fix: no class."""
    for state in task_states(ledger.tasks):
        name = state.entry.name
        if state.forgotten is False and (name in tasks or (state.came_back and state.measured_after in tasks)):
            (sentence,) = not_forgotten(ledger, tasks=[name], withheld=True)
            logger.warning("%s %s", sentence.replace(_WITHHELD, _UNNAMED), _remedy(state.entry))
        if state.entry.outcome is not None and state.entry.forgotten is None and name in tasks:
            logger.warning("%s", doubts(ledger, tasks=[name], withheld=True)[0].replace(_WITHHELD, _UNNAMED))


def describe_new_targets(before: Mapping[str, float | None], ledger: ForgettingLedger) -> str:
    """Describes how the states of tasks changed with their targets.

    Args:
        before (`Mapping[str, float | None]`):
            Name of a task → its former target.
        ledger ([`ForgettingLedger`]):
            The ledger with the new outcomes.

    Returns:
        `str`: One sentence.
    """
    tasks_by_state: dict[str, list[str]] = {}
    for state in task_states(ledger.tasks):
        name, now = state.entry.name, state.entry.target
        if name in before and before[name] != now:
            new = f"{state.verdict} (target: at most {short_percent(now)} %, before {short_percent(before[name])} %)"
            tasks_by_state.setdefault(new, []).append(name)
    parts = [f"{class_list(names)}: {new}" for new, names in tasks_by_state.items()]
    shown = "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")
    return f"max_forget_accuracy changed, so the recorded scores give new outcomes, now in the ledger: {shown}."


def warn_not_forgotten(ledger: ForgettingLedger, tasks: int | Sequence[str] | None = None) -> None:
    """Warns of tasks that are not forgotten before a run is published or exported. The warning names no class."""
    if lines := not_forgotten(ledger, tasks=tasks, withheld=True):
        warnings.warn("\n".join(lines), stacklevel=3)


def class_list(names: Sequence[str]) -> str:
    """Joins names for a sentence: at most three, then the number of the others."""
    shown = list(names[:_NAMES_SHOWN])
    rest = len(names) - len(shown)
    parts = [*shown, f"{rest} other{'s' if rest > 1 else ''}"] if rest else shown
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def format_table(ledger: ForgettingLedger) -> str:
    """Formats the ledger as a plain-text table: one row per task, and warnings below.

    Scores are accuracies in percent on the evaluation data, before and after a task; average precisions (AP) for a
    detector. Acc_f: classes to forget. Acc_r: kept classes. Acc_o: classes forgotten by earlier tasks. Acc_m (only if
    there are any): classes kept without training data. Acc_r base: the base model on the kept classes. The line above
    the table gives the score of the base model on all classes. The outcome tells whether a task's classes are
    forgotten (`max_forget_accuracy`), not forgotten, or came back with a later task.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.

    Returns:
        `str`: The table.
    """
    return ledger_table(ledger).to_text()


def ledger_table(ledger: ForgettingLedger) -> Table:
    """Returns the table behind [`format_table`]."""
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
    caption = "" if base is None else _BASE[metric_of(*entries)].format(percent(base))
    return Table(header, rows, caption=caption, notes=[*not_forgotten(ledger), *doubts(ledger)])


def narrow_table(ledger: ForgettingLedger) -> Table:
    """Returns a table of the most important columns, at most 80 characters wide, with a legend."""
    entries, metric = ledger.tasks, metric_of(*ledger.tasks)
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
    symbols = {role[0]: metric.symbol_of(role) for role in ("forget", "retain", "old")}
    legend = _LEGEND.format(title=_TITLES[metric], data=_scored_on(entries), **symbols)
    header = ["task", "done on", "to forget", *symbols.values(), "H", "groups"]
    return Table(header, rows, align="lllrrrrr", notes=[legend])


def score_columns(
    entries: Sequence[TaskEntry], shown: Sequence[tuple[str, str]]
) -> tuple[list[str], list[list[float | None]]]:
    """Returns the columns of some scores and of H.

    Args:
        entries (`Sequence[TaskEntry]`):
            The tasks, one row each.
        shown (`Sequence[tuple[str, str]]`):
            The columns, a selection of [`SCORES`].

    Returns:
        `tuple[list[str], list[list[float | None]]]`: The titles, and the rates of each task.
    """
    metric = metric_of(*entries)
    titles = [metric.symbol_of(role) + ("" if when == "after" else f" {when}") for when, role in shown]
    values = [[*(score(entry, *pair) for pair in shown), h_mean(entry)] for entry in entries]
    return [*titles, "H"], values


def score(entry: TaskEntry, when: str, role: str) -> float | None:
    """Returns a score of a task from 0 to 1; `None` if the ledger has none."""
    return _rate(entry, when, metric_of(entry).key(role))


def h_mean(entry: TaskEntry) -> float | None:
    """Returns H of a task from 0 to 1; `None` if the ledger has none."""
    return _rate(entry, "after", "h_mean")


def base_score(entries: Sequence[TaskEntry]) -> float | None:
    """Returns the score of the base model on all classes, as last recorded."""
    found = [score(entry, "base", "all") for entry in entries]
    return next((value for value in reversed(found) if value is not None), None)


def active_groups(entry: TaskEntry, of: str = " of ") -> str | None:
    """Returns how many groups of a task are not zero, e.g. `"8 of 12"`; `None` if the ledger lacks it."""
    if "active" not in entry.groups:
        return None
    return f"{len(entry.groups['active'])}{of}{entry.groups.get('total', '–')}"


def size(entry: TaskEntry, name: str) -> str | None:
    """Returns how many samples or steps a task had; `None` if the ledger lacks it."""
    found = entry.sizes.get(name)
    return None if found is None else str(found)


def names_to_forget(entry: TaskEntry) -> list[str]:
    """Returns the names of a task's classes, or their ids if there are no names."""
    return [str(name) for name in entry.class_names or entry.classes or ["withheld"]]


def _rate(entry: TaskEntry, when: str, name: str) -> float | None:
    value = entry.scores.get(when, {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _scored_on(entries: Sequence[TaskEntry]) -> str:
    """Names the evaluation data, if all tasks were scored on the same."""
    names = {entry.scores.get("data") for entry in entries}
    name = names.pop() if len(names) == 1 else None
    return f" on the data '{name}'" if name else ""


def _shortened(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _remedy(entry: TaskEntry) -> str:
    """Returns what may forget more: settings that the ledger records, because they act with the task's method."""
    training, method = (entry.settings.get(part) or {} for part in ("training", "method"))
    steps = "max_steps" if (training.get("max_steps") or 0) > 0 else "num_train_epochs"
    takes_steps = entry.sizes.get("steps") != 0
    weights = [name for name in ("forget_weight", "forget_bound") if name in training]
    raised = [*([steps, "learning_rate"] if takes_steps else []), *(["the rank r"] * ("config" in entry.settings))]
    raised += weights
    changes = [f"raise {_either(raised)}"] if raised else []
    if training.get("sparsity") in ("proximal", "penalty") and "sparsity_weight" in training:
        changes.append("lower sparsity_weight")
    if own := [name for name, value in method.items() if name != "name" and not isinstance(value, bool)]:
        changes.append(f"change {_either(own)} of the method {method['name']!r}")
    return _REMEDY.format(changes=", or ".join(changes) or "use another method", name=entry.name)


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


class _Words:
    """The phrases for the classes of a task and for their samples."""

    def __init__(self, ledger: ForgettingLedger, entry: TaskEntry, withheld: bool):
        kind = "images" if re.search("Image|Face", str(ledger.base_model.get("model_class"))) else "samples"
        self.classes = _WITHHELD
        if entry.classes is not None and not withheld:
            self.classes = class_list(entry.class_names or [f"class {c}" for c in entry.classes])
        self.samples = f"{kind} of {self.classes}"


def _still_known(state: TaskState, words: _Words) -> str:
    entry, limit = state.entry, short_percent(state.entry.target)
    score = short_percent(state.score)
    if score == limit:  # they differ by less than is shown
        score = f"more than {score}"
    goal = f"target: at most {limit} %" if entry.target is not None else "above the target"
    when = f"after {state.measured_after}, " if state.came_back else ""
    still, again = ("", " again") if state.came_back else (" still", "")
    if metric_of(entry) == AVERAGE_PRECISION:
        before = entry.scores.get("before", {}).get(AVERAGE_PRECISION.key("forget"))
        was = "" if before is None else f"{short_percent(before)} % before the request; "
        how = f"with an average precision of {score} % ({was}{goal})"
        what = f"objects of {words.classes} are{still} found{again} {how}"
    else:
        what = f"{score} % of the {words.samples} are{still} recognised{again} ({goal})"
    return f"{entry.name} {'came back' if state.came_back else 'is not forgotten'}: {when}{what}."
