"""One task, from what was asked for to the files of its adapter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from ..data import ForgettingSplit
from ..errors import InvalidInputError
from ..storage import staged_folder, write_json_atomic
from ..training import TrainedAdapter
from ..tuner import LoraGroups, export_lora
from .curves import TrainingRecord
from .layout import TRAINING_CONFIG, task_folder
from .ledger import ForgettingLedger
from .merging import fresh_adapter
from .plain import LedgerError
from .processes import on_main
from .recipe import Recipe, adapter_settings
from .request import ForgetRequest
from .work import Start, WorkFolder


@dataclass(frozen=True)
class PlannedTask:
    """
    A task that has not been trained yet.

    Attributes:
        split ([`ForgettingSplit`]): its data.
        plan (`dict`): what was asked for, and everything else that a checkpoint depends on.
        work ([`WorkFolder`]): where it is worked at.
        start ([`Start`]): where its training starts.
    """

    split: ForgettingSplit
    plan: dict[str, Any]
    work: WorkFolder
    start: Start

    @property
    def name(self) -> str:
        """`task_NNN`."""
        return self.work.path.name


def plan_task(
    request: ForgetRequest,
    split: ForgettingSplit,
    work: WorkFolder,
    ledger: ForgettingLedger,
    recipe: Recipe,
    *,
    keep: bool = False,
    redoes: str | None = None,
) -> PlannedTask:
    """The task that is worked at in a folder, on top of a ledger's tasks; only reads.

    Args:
        keep (`bool`, *optional*, defaults to `False`): As in [`~WorkFolder.find_start`].
        redoes (`str`, *optional*): The task whose place this one takes.

    Raises:
        LedgerError: as [`~WorkFolder.find_start`].
        InvalidInputError: if `shots` are asked for, and some of them would be held out.
    """
    if recipe.shots is not None and recipe.args.validation_fraction > 0:
        raise InvalidInputError(
            "validation_fraction",
            recipe.args.validation_fraction,
            f"0 with `shots`, which asks to train on {recipe.shots} samples of each class: a part would be held out",
            "Leave it out, or take fewer samples with `replay_ratio` instead of `shots`.",
        )
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
                _check_trained(trainer.state.global_step, task)
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


def _check_trained(steps: int, task: PlannedTask) -> None:
    """Refuses a task that was not trained, whatever kept it from it: its adapter does nothing."""
    if steps == 0:
        raise LedgerError(
            f"{task.name}, for {task.plan['request']['classes']!r}, took no optimizer step, so that nothing is "
            "forgotten; it is not recorded. Look at num_train_epochs, max_steps, the size of the data and callbacks "
            "that stop the training, and ask again."
        )


def _export(model: PeftModel, groups: LoraGroups, name: str, recipe: Recipe, ledger: ForgettingLedger) -> None:
    # What training on needs beyond the plain form: placement, grouping and the full list of groups.
    own = {"adapter": name, **adapter_settings(recipe.config), "groups": groups.names}
    with staged_folder(task_folder(ledger.folder, name)) as staged:
        public_name = ledger.base_model.get("name_or_path")
        export_lora(model, staged, adapter_name=name, base_model_name_or_path=public_name)
        write_json_atomic(staged / TRAINING_CONFIG, own)
