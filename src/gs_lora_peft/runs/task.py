"""One task, from the request to the files of its adapter and its entry."""

from __future__ import annotations

import importlib.metadata
import platform
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
import numpy as np
import copy
from typing import Any, cast
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, set_seed
from ..data import ForgettingSplit
from ..errors import InvalidInputError
from ..io import staged_folder, write_json_atomic
from ..training import TrainedAdapter
from ..tuner import LoraGroups, export_lora
from ..ledger import TRAINING_CONFIG, task_folder
from ..ledger import ForgettingLedger
from ..adapters import fresh_adapter
from .folder import on_main
from .recipe import Recipe, adapter_settings
from ..ledger import ForgetRequest
from .workspace import Start, Workspace
from collections.abc import Sequence
from typing import Any
from ..ledger import TaskEntry
from ..ledger import utc_now
from ..ledger import curve_names

if TYPE_CHECKING:
    from ..training import ForgettingTrainer, TrainedAdapter

_PACKAGES = ("gs-lora-peft", "peft", "transformers", "torch", "accelerate", "datasets", "safetensors", "numpy")


def library_versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


MAX_CURVE_POINTS = 100


@dataclass(frozen=True)
class TrainingRecord:
    """What is left of the training of one task, besides its adapter.

    Args:
        groups (`dict`):
            As in [`TaskEntry`].
        sizes (`dict[str, int]`):
            Samples that were trained on, without those held out for evaluation, to `forget` and to `retain`; and
            optimizer `steps`.
        curves (`dict[str, list[float]]`, *optional*):
            See [`training_curves`].
    """

    groups: dict[str, Any]
    sizes: dict[str, int]
    curves: dict[str, list[float]] | None

    @classmethod
    def of(cls, trainer: ForgettingTrainer) -> TrainingRecord:
        """The record of a trainer that has finished (one host synchronisation for the groups and one for norms)."""
        groups = cast("TrainedAdapter", trainer.trained).groups
        # What changes nothing counts for nothing, whatever the norm of its lora_A.
        norms = dict(zip(groups.names, (groups.norms() * groups.changed()).tolist(), strict=True))
        pairs, state = trainer.train_dataset, trainer.state
        sizes = {"forget": len(pairs.forget), "retain": len(pairs.retain), "steps": state.global_step}
        return cls({**groups.state(), "norms": norms}, sizes, training_curves(state.log_history))


def training_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """The logged losses, accuracies and active groups of a training.

    Args:
        log_history (`Sequence[Mapping]`):
            What the trainer logged (`trainer.state.log_history`).

    Returns:
        `dict[str, list[float]]` or `None`: `epoch` and, at each of these moments, the means since the one before:
        `retain_loss` and `forget_loss` in nats, `retain_accuracy` and `forget_accuracy` in [0, 1] (of a detector
        `retain_confidence` and `forget_confidence`, also in [0, 1]); and the number of `active_groups`. At most 100
        evenly spread points, the first and the last among them, to six digits. `None` where nothing was logged.
    """
    names = next(filter(None, map(curve_names, log_history)), ())
    rows = [[row[name] for name in names] for row in log_history if names and all(name in row for name in names)]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    picked = np.unique(np.linspace(0, len(rows) - 1, MAX_CURVE_POINTS).round().astype(int))
    columns = zip(*(rows[index] for index in picked), strict=True)
    return {name: [float(f"{value:.6g}") for value in column] for name, column in zip(names, columns, strict=True)}


@dataclass(frozen=True)
class PlannedTask:
    """
    A task that has not been trained yet.

    Attributes:
        split ([`ForgettingSplit`]):
            Its data.
        plan (`dict`):
            What was asked for, and everything else that a checkpoint depends on.
        work ([`Workspace`]):
            Where it is worked at.
        start ([`Start`]):
            Where its training starts.
    """

    split: ForgettingSplit
    plan: dict[str, Any]
    work: Workspace
    start: Start

    @property
    def name(self) -> str:
        """`task_NNN`."""
        return self.work.path.name


def plan_task(
    request: ForgetRequest,
    split: ForgettingSplit,
    work: Workspace,
    ledger: ForgettingLedger,
    recipe: Recipe,
    *,
    keep: bool = False,
    redoes: str | None = None,
) -> PlannedTask:
    """The task that is worked at in a folder, on top of a ledger's tasks; only reads.

    Args:
        keep (`bool`, *optional*, defaults to `False`):
            As in [`~Workspace.find_start`].
        redoes (`str`, *optional*):
            The task whose place this one takes.

    Raises:
        LedgerError: As [`~Workspace.find_start`].
        ValueError: If `shots` are asked for, and some of them would be held out.
    """
    if recipe.shots is not None and recipe.args.validation_fraction > 0:
        expected = f"0 where `shots` asks to train on {recipe.shots} samples of each class"
        fix = "It would hold some of them out: leave it at 0, or take fewer samples with `replay_ratio`."
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
    return PlannedTask(split, plan, work, on_main(lambda: work.find_start(plan, keep)))


def train_task(task: PlannedTask, model: PreTrainedModel, recipe: Recipe, ledger: ForgettingLedger) -> TrainingRecord:
    """Trains the adapter of a task and writes it into the ledger's folder; `model` is left without it."""
    config = copy.deepcopy(recipe.config)
    config.revision = ledger.base_model.get("revision")
    # The adapter's random start depends on the seed alone, not on what ran before in this process.
    set_seed(recipe.args.seed)
    work, main = task.work, PartialState().is_main_process
    try:
        with fresh_adapter(model, config, task.name) as peft_model:
            trainer = recipe.trainer(peft_model, task.split, work.path)
            on_main(lambda: work.begin(task.plan, task.start))
            try:
                trainer.train(resume_from_checkpoint=task.start.checkpoint)
                trainer.check_trained()
                groups = cast(TrainedAdapter, trainer.trained).groups
                on_main(lambda: _export(peft_model, groups, task.name, recipe, ledger))
            except Exception:
                if main:
                    work.fail()
                raise
            return TrainingRecord.of(trainer)
    finally:
        if main:
            work.remove_if_empty()


def _export(model: PeftModel, groups: LoraGroups, name: str, recipe: Recipe, ledger: ForgettingLedger) -> None:
    # What training on needs beyond the plain form: placement, grouping and the full list of groups.
    own = {"adapter": name, **adapter_settings(recipe.config), "groups": groups.names}
    with staged_folder(task_folder(ledger.folder, name)) as staged:
        public_name = ledger.base_model.get("name_or_path")
        export_lora(model, staged, adapter_name=name, base_model_name_or_path=public_name)
        write_json_atomic(staged / TRAINING_CONFIG, own)


def finished_entry(
    task: PlannedTask,
    training: TrainingRecord,
    scores: dict[str, Any],
    outcome: dict[str, Any],
    files: dict[str, str],
    label_names: Sequence[str] | None,
) -> TaskEntry:
    """What the ledger records of a task; `files` are the hashes of what was merged, see [`~MergedModel.merge_new`]."""
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
    )
