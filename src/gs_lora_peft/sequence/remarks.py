"""The outcome of a run in sentences, for the log, the tables, the command line and the cards."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.measures import AVERAGE_PRECISION, measure_of
from ..reports import short_percent
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
