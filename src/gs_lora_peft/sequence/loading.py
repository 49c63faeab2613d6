"""Rebuilding a model that has forgotten, from a folder with a ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from .fingerprint import model_identity
from .ledger import ForgettingLedger
from .request import TaskEntry

TASKS_FOLDER = "tasks"


def task_folder(folder: str | os.PathLike, name: str) -> Path:
    """Where the files of one task are."""
    return Path(folder) / TASKS_FOLDER / name


def load_forgotten(
    base_model: PreTrainedModel,
    folder: str | os.PathLike,
    tasks: int | Sequence[str] | None = None,
    merge: bool = False,
) -> nn.Module:
    """
    Rebuild the model as it was after some of its forgetting tasks. Ledger, files and base weights are checked first.

    Args:
        base_model (`transformers.PreTrainedModel`): the model the tasks were trained on, changed in place.
        folder (`str` or `os.PathLike`): a folder with `forgetting.json`.
        tasks (`int` or list of `str`, *optional*): the first so many tasks in effect, or their names (`"task_001"`). By
            default all; 0 gives the base model back.
        merge (`bool`, *optional*, defaults to `False`):
            `True`: the tasks are merged into the weights in order and the bare model is returned, bit-equal to the model
            that was trained on. `False`: a `PeftModel` with one frozen adapter per task, all active.

    Returns:
        `PeftModel`, or the base model itself with `merge=True` or without tasks; in eval mode.

    Raises:
        LedgerError: if the ledger is missing, edited or of a newer schema, if a file is missing or differs from its recorded
            hash, if the base weights are not those the ledger names, or if a task does not exist. Nothing is changed then.
    """
    ledger = ForgettingLedger.load(folder)
    entries = ledger.select(tasks)
    ledger.check_base(model_identity(base_model))
    ledger.check_files([entry.name for entry in entries])
    if merge:
        return merge_tasks(base_model, folder, entries).eval()
    if not entries:
        return base_model.eval()
    first, *others = [entry.name for entry in entries]
    model = PeftModel.from_pretrained(base_model, task_folder(folder, first), adapter_name=first)
    for name in others:
        model.load_adapter(str(task_folder(folder, name)), adapter_name=name)
    model.base_model.set_adapter([first, *others], inference_mode=True)
    return model.eval()


def merge_tasks(model: nn.Module, folder: str | os.PathLike, entries: Sequence[TaskEntry]) -> nn.Module:
    """Merge tasks into a model's weights, one after another, in place.

    The same published files go through the same sum in the same order wherever a sequence is rebuilt, so that the result
    is bit-equal to the model that later tasks were trained on.
    """
    for entry in entries:
        adapted = PeftModel.from_pretrained(model, task_folder(folder, entry.name), adapter_name=entry.name)
        model = adapted.merge_and_unload()
    return model
