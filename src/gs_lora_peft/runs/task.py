"""One task: its plan, its training, the files that it leaves, and its ledger entry."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from ..adapters import MergedModel, check_tasks
from ..data import ForgettingSplit
from ..errors import InvalidInputError
from ..ledger import (
    LOGS_FOLDER,
    ForgetRequest,
    ForgettingLedger,
    TaskEntry,
    curve_names,
    outcome_of_task,
    utc_now,
    warn_before,
)
from ..methods import get_method
from .cost import CostMeter
from .folder import RunFolder, run_on_main
from .leaving import Leaving
from .method_files import check_earlier, keep_for_later, kept_of_earlier
from .recipe import Recipe
from .scores import Scores
from .settings import Differences, changed_settings
from .validation import check_missing
from .workspace import Start, Workspace

_PACKAGES = ("gs-lora-peft", "peft", "transformers", "torch", "accelerate", "datasets", "safetensors", "numpy")
MAX_CURVE_POINTS = 100


class TaskRunner(RunFolder):
    """The part of [`ContinualForgetter`] that carries out one request."""

    model: PreTrainedModel
    recipe: Recipe
    train_dataset: Dataset
    scored_on: str
    label_names: list[str] | None
    _merged: MergedModel
    _scores: Scores
    _scored_classes: set[int]
    _untrained_classes: set[int]

    def _split(self, classes: Sequence[int], old: Sequence[int]) -> ForgettingSplit:
        return self.recipe.split(self.train_dataset, classes, old, self._scored_classes)

    def _carry_out(
        self, request: ForgetRequest, split: ForgettingSplit, *, keep: bool = False, redoes: str | None = None
    ) -> TaskEntry:
        run_on_main(lambda: check_tasks(self.ledger, [entry.name for entry in self.ledger.active_tasks]))
        run_on_main(lambda: check_earlier(self.ledger, get_method(self.recipe.method)))
        workspace = self._workspace(self.ledger.next_task_name())
        task = plan_task(request, split, workspace, self.ledger, self.recipe, keep=keep, redoes=redoes)
        self._measure_base()
        before = self._scores.of_task(self.model, split.roles)
        allowed, names = self.recipe.args.max_forget_accuracy, self.label_names
        run_on_main(lambda: warn_before(self.ledger, before, allowed))
        training = train_task(task, self.model, self.recipe, self.ledger, self._merged.originals)
        with self._merged.restored_on_error():
            files = self._merged.merge_new(task.name)
            earlier = {entry.name: entry.classes or () for entry in self.ledger.active_tasks}
            after, of_earlier = self._scores.after_task(self.model, split.roles, before, earlier)
            base = self._scores.of_base(split.roles)
            scores = {"base": base, "before": before, "after": after, "data": self.scored_on}
            outcome = outcome_of_task(allowed, before, after, of_earlier, self.ledger)
            self._record(lambda: self.ledger.append(finished_entry(task, training, scores, outcome, files, names)))
        run_on_main(lambda: task.workspace.finish(self.folder / LOGS_FOLDER / task.name))
        self._warn_once([task.name])
        return self.ledger.tasks[-1]

    def _measure_base(self) -> None:
        """Scores the base model, once."""
        if self._scores.knows_base:
            return
        with self._merged.without_tasks():
            self._scores.measure_base(self.model)

    def _changed(self, entry: TaskEntry, recipe: Recipe, gone: Sequence[int] = ()) -> Differences:
        """Compares the settings of a task with a recipe; `gone` are the classes forgotten at the end."""
        named = check_missing(recipe.missing_classes, self.ledger, self.label_names)
        missing = {*named, *self._untrained_classes}
        return changed_settings(entry, recipe.settings(), missing, {*gone, *self.ledger.forgotten_classes})


@dataclass(frozen=True)
class PlannedTask:
    """A task before its training.

    Args:
        split ([`ForgettingSplit`]):
            The training data.
        plan (`dict[str, Any]`):
            The request, and everything else that a checkpoint depends on.
        workspace ([`Workspace`]):
            Folder of the training.
        start ([`Start`]):
            Start of the training.
    """

    split: ForgettingSplit
    plan: dict[str, Any]
    workspace: Workspace
    start: Start

    @property
    def name(self) -> str:
        """Name of the task, `task_NNN`."""
        return self.workspace.path.name


def plan_task(
    request: ForgetRequest,
    split: ForgettingSplit,
    workspace: Workspace,
    ledger: ForgettingLedger,
    recipe: Recipe,
    *,
    keep: bool = False,
    redoes: str | None = None,
) -> PlannedTask:
    """Plans the task of a request on top of the tasks in effect. Writes nothing.

    Args:
        request ([`ForgetRequest`]):
            The request.
        split ([`ForgettingSplit`]):
            The training data.
        workspace ([`Workspace`]):
            Folder of the training.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        recipe ([`Recipe`]):
            The settings of the training.
        keep (`bool`, *optional*, defaults to `False`):
            As in [`~Workspace.find_start`].
        redoes (`str`, *optional*):
            Name of the task that this one replaces.

    Raises:
        LedgerError: As in [`~Workspace.find_start`].
        ValueError: If `validation_fraction` would hold out some of the `shots`.
    """
    if recipe.shots is not None and recipe.args.validation_fraction > 0:
        expected = f"0, because `shots` asks to train on {recipe.shots} samples of each class"
        fix = "It would hold out some of them: leave it at 0, or take fewer samples with `replay_ratio`."
        raise InvalidInputError("validation_fraction", recipe.args.validation_fraction, expected, fix)
    plan = {
        "request": request.to_dict(),
        "classes": split.forget_classes,
        "missing_classes": split.missing_classes,
        "sizes": {"forget": len(split.forget), "retain": len(split.retain)},
        "settings": recipe.settings(),
        "tasks": [entry.name for entry in ledger.active_tasks],
        **({"redoes": redoes} if redoes else {}),
    }
    return PlannedTask(split, plan, workspace, run_on_main(lambda: workspace.find_start(plan, keep)))


@dataclass(frozen=True)
class TrainingRecord:
    """What the ledger records of a training.

    Args:
        groups (`dict[str, Any]`):
            As in [`TaskEntry`].
        sizes (`dict[str, int]`):
            As in [`TaskEntry`].
        curves (`dict[str, list[float]]`, *optional*):
            See [`training_curves`].
        cost (`dict[str, Any]`):
            As in [`TaskEntry`].
        method_files (`dict[str, str]`, *optional*):
            As in [`TaskEntry`].
    """

    groups: dict[str, Any]
    sizes: dict[str, int]
    curves: dict[str, list[float]] | None
    cost: dict[str, Any]
    method_files: dict[str, str] | None


def train_task(
    task: PlannedTask,
    model: PreTrainedModel,
    recipe: Recipe,
    ledger: ForgettingLedger,
    originals: Mapping[str, Tensor],
) -> TrainingRecord:
    """Trains a task and writes what it leaves to the run folder.

    Args:
        task ([`PlannedTask`]):
            The task.
        model (`transformers.PreTrainedModel`):
            The model with all earlier tasks merged. It is bare and as before afterwards.
        recipe ([`Recipe`]):
            The settings of the training.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        originals (`Mapping[str, torch.Tensor]`):
            The tensors that earlier tasks changed, with the values of the base model, by name.
    """
    # The random initialisation depends on the seed alone, not on earlier tasks of this process.
    set_seed(recipe.args.seed)
    workspace, main = task.workspace, PartialState().is_main_process
    leaving = Leaving.of(task.name, recipe, ledger)
    try:
        with leaving.prepared(model) as trained_model:
            earlier = kept_of_earlier(ledger, get_method(recipe.method))
            trainer = recipe.trainer(trained_model, task.split, workspace.path, earlier)
            trainer.trained.originals = originals
            run_on_main(lambda: workspace.begin(task.plan, task.start))
            meter = CostMeter(task.start.checkpoint)
            trainer.add_callback(meter)
            try:
                trainer.train(resume_from_checkpoint=task.start.checkpoint)
                trainer.check_trained()
                cost, left = meter.cost(trainer), trainer.method.leave()
                groups = leaving.groups(trainer)
                method_files = run_on_main(lambda: keep_for_later(ledger, task.name, left))
                run_on_main(lambda: leaving.export(trainer))
            except Exception:
                if main:
                    workspace.fail()
                raise
            pairs, state = trainer.train_dataset, trainer.state
            sizes = {"forget": len(pairs.forget), "retain": len(pairs.retain), "steps": state.global_step}
            return TrainingRecord(groups, sizes, training_curves(state.log_history), cost, method_files)
    finally:
        if main:
            workspace.remove_if_empty()


def finished_entry(
    task: PlannedTask,
    training: TrainingRecord,
    scores: dict[str, Any],
    outcome: dict[str, Any],
    files: dict[str, str],
    label_names: Sequence[str] | None,
) -> TaskEntry:
    """Returns the ledger entry of a completed task.

    Args:
        task ([`PlannedTask`]):
            The task.
        training ([`TrainingRecord`]):
            The record of its training.
        scores (`dict[str, Any]`):
            Scores, see [`TaskEntry`].
        outcome (`dict[str, Any]`):
            The result of [`outcome_of_task`].
        files (`dict[str, str]`):
            The result of [`MergedModel.merge_new`].
        label_names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.
    """
    plan, start = task.plan, task.start
    return TaskEntry(
        name=task.name,
        request=start.request,
        classes=plan["classes"],
        class_names=[label_names[c] for c in plan["classes"]] if label_names else None,
        missing_classes=plan["missing_classes"] or None,
        started_at=start.started_at,
        finished_at=utc_now(),
        sizes=training.sizes,
        settings=plan["settings"],
        versions=library_versions(),
        files=files,
        groups=training.groups,
        scores=scores,
        curves=training.curves,
        outcome=outcome,
        cost=training.cost,
        method_files=training.method_files,
    )


def training_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """Returns the logged losses, accuracies and active groups of a training.

    Args:
        log_history (`Sequence[Mapping[str, Any]]`):
            The logs of the trainer (`trainer.state.log_history`).

    Returns:
        `dict[str, list[float]]` or `None`: `epoch`; the means since the previous point of `retain_loss` and
        `forget_loss` in nats and of `retain_accuracy` and `forget_accuracy` in [0, 1] (for a detector
        `retain_confidence` and `forget_confidence`); and the `active_groups` of an adapter. At most 100 evenly spaced
        points, including the first and the last, to six digits. `None` if nothing was logged.
    """
    names = next(filter(None, map(curve_names, log_history)), ())
    rows = [[row[name] for name in names] for row in log_history if names and all(name in row for name in names)]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    picked = np.unique(np.linspace(0, len(rows) - 1, MAX_CURVE_POINTS).round().astype(int))
    columns = zip(*(rows[index] for index in picked), strict=True)
    return {name: [float(f"{value:.6g}") for value in column] for name, column in zip(names, columns, strict=True)}


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of the libraries that affect the result of a run."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
