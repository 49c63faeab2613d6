"""The work behind `gs-lora redo`: the last request again, with recorded settings and those that are given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...errors import InvalidInputError
from ...hub import base_source
from ...ledger import ForgettingLedger, TaskEntry, target_score
from ...metrics import ACCURACY, measure_of
from ...runs import recorded_config, task_to_redo
from ...training import GSLoraTrainingArguments, adapter_of_recipe
from ..audit import recorded_name
from ..loading import model_class
from ..terminal import UsageError, renamed, working
from .digits import DIGIT_NAMES
from .options import REDO_LACKS, AdapterArguments, DataArguments
from .parser import SettingsParser
from .subjects import Classifier, Digits
from .working import Printer, finish, forgetter_of, kind_of_class


def redo(argv: Sequence[str]) -> int:
    """Does what `gs-lora redo` does.

    Args:
        argv (`Sequence[str]`):
            Folder, perhaps task, and options, as in `["runs/clinic", "task_003", "--data", "org/faces", "--r", "16"]`.

    Returns:
        `int`: The exit code: 0, or 3 if a request is not forgotten.

    Raises:
        UsageError: If the command line is wrong.
        LedgerError, ValueError, OSError: As [`~ContinualForgetter.redo`].
    """
    run, task, rest = _placed(argv)
    ledger = ForgettingLedger.load(run)
    if task is not None:
        task_to_redo(ledger, task)  # refuses, before a model is loaded
    options_of, adapter = _recorded(ledger, rest)
    parser = SettingsParser(output_dir=run, **options_of)
    if wrong := sorted(parser.given(rest) & REDO_LACKS):
        raise UsageError(
            f"{renamed(f'--{wrong[0]}')} is an option of forget: redo carries out a request of the ledger again"
        )
    options = parser.parse_options(rest)
    data: DataArguments = options.data
    if data.dataset_name is None and ledger.label_names != DIGIT_NAMES:
        raise UsageError("--data is missing: name the data of all classes, to forget and to keep")
    if data.dataset_name is None and data.model_name_or_path is not None:
        raise UsageError("--model is given without --data: the digits come with their own model")
    kind: type[Classifier] = Digits
    source: dict[str, Any] = {}
    if data.dataset_name is not None:
        source = base_source(ledger, data.model_name_or_path or recorded_name(ledger, "--model_name_or_path"))
        kind = kind_of_class(model_class(source))
    printer = Printer(options.run.json)
    with working():
        subject = kind(options, source)
        forgetter = forgetter_of(subject, adapter)
        forgetter.redo(task)
    return finish(subject, forgetter, printer)


def _placed(argv: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Splits a command line into folder, task and options."""
    words = list(argv)
    placed: list[str] = []
    while words and not words[0].startswith("-") and len(placed) < 2:
        placed.append(words.pop(0))
    if not placed:
        raise UsageError("RUN is missing: name the folder of the run first, as in `gs-lora redo runs/clinic --r 16`")
    return placed[0], placed[1] if len(placed) > 1 else None, words


def _recorded(ledger: ForgettingLedger, argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the recorded settings of the last task in effect: as defaults of options, and those of no option."""
    if not ledger.active_tasks:
        return {}, {}
    entry = ledger.active_tasks[-1]
    settings = entry.settings
    if "method" in settings:
        name = settings["method"].get("name")
        fix = "Redo it with ContinualForgetter.redo in Python."
        raise InvalidInputError(f"method of {entry.name}", name, "gs_lora, which commands train", fix)
    known = {item.name for item in fields(GSLoraTrainingArguments)}
    training = {name: value for name, value in settings.get("training", {}).items() if name in known}
    config = vars(recorded_config(ledger)) if settings.get("config") is not None else {}
    adapter = {name: config[name] for name in settings.get("config", {})}
    if "target_modules" in adapter:
        adapter["target_modules"] = settings["config"]["target_modules"]
    given = SettingsParser().given(argv)
    if "recipe" in given:
        training, adapter = _without_recipe(training, adapter)
    options = {item.name for item in fields(AdapterArguments)}
    named = {name: value for name, value in adapter.items() if name in options and not isinstance(value, list)}
    rest = {name: value for name, value in adapter.items() if name not in named and name not in given}
    return {**training, **named, **_of_data(entry), **_target(ledger, entry)}, rest


def _of_data(entry: TaskEntry) -> dict[str, Any]:
    data = entry.settings.get("data", {})
    sampling = {name: data[name] for name in ("replay_ratio", "shots") if name in data}
    missing = ",".join(map(str, entry.missing_classes or ()))
    return {**sampling, **({"missing": missing} if missing else {})}


def _target(ledger: ForgettingLedger, entry: TaskEntry) -> dict[str, Any]:
    """Returns the accuracy that counts as forgotten, unless it is the default. A detector's is relative."""
    before = entry.scores.get("before", {})
    usual = target_score("auto", before, ledger.base_model.get("num_labels"))
    if entry.target is None or measure_of(before) != ACCURACY or entry.target == usual:
        return {}
    return {"max_forget_accuracy": entry.target}


def _without_recipe(training: Mapping[str, Any], adapter: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leaves out what the recorded recipe set, so that another recipe can."""
    recipe = training.get("recipe", "fast")
    made, usual = GSLoraTrainingArguments(os.devnull, recipe=recipe), GSLoraTrainingArguments.__dataclass_fields__
    of_recipe = {name for name in training if usual[name].default is None}
    kept = {name: value for name, value in training.items() if name not in of_recipe or value != getattr(made, name)}
    own = adapter_of_recipe(recipe)
    ranks = {name for name in ("r", "lora_alpha") if adapter.get(name) == getattr(own, name)}
    return kept, {name: value for name, value in adapter.items() if name not in ranks}
