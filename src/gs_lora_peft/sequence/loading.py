"""Rebuilding a model that has forgotten, from a folder with a ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel

from .entry import TaskEntry
from .fingerprint import model_identity
from .ledger import ForgettingLedger
from .merging import TASKS_FOLDER, merge_tasks, task_folder
from .plain import LedgerError


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
        tasks (`int` or list of `str`, *optional*): the first so many tasks in effect, or their names (`"task_001"`).
            By default all; 0 gives the base model back. Tasks that were revoked are left out.
        merge (`bool`, *optional*, defaults to `False`):
            `True`: the tasks are merged into the weights in order and the bare model is returned, bit-equal to the
            model that was trained on. `False`: a `PeftModel` with one frozen adapter per task, all active.

    Returns:
        `PeftModel`, or the base model itself with `merge=True` or without tasks; in eval mode.

    Raises:
        LedgerError: if the ledger is missing, edited or of a newer schema, if a file is missing or differs from its
            recorded hash, if the base weights are not those the ledger names, or if a task does not exist. Nothing is
            changed then.
        ValueError: if the model holds adapters already.
    """
    refuse_adapters(base_model)
    ledger = ForgettingLedger.load(folder)
    names = [entry.name for entry in ledger.select(tasks)]
    check_tasks(ledger, names)
    ledger.check_base(model_identity(base_model))
    if merge or not names:
        return merge_tasks(base_model, folder, names).eval()
    first, *others = names
    # Read on the CPU, from where they go to the layers they belong to; without drawing random numbers first.
    options: Any = {"low_cpu_mem_usage": True, "torch_device": "cpu"}
    model = PeftModel.from_pretrained(base_model, task_folder(folder, first), adapter_name=first, **options)
    for name in others:
        model.load_adapter(str(task_folder(folder, name)), adapter_name=name, **options)
    tuner: Any = model.base_model  # PeftModel's own method takes one name
    tuner.set_adapter(names, inference_mode=True)
    return model.eval()


def check_tasks(ledger: ForgettingLedger, names: Sequence[str]) -> None:
    """Checks that the ledger vouches for an adapter of each task, and that the files are the ones it vouches for.

    Raises:
        LedgerError: It does not, or files are missing or differ.
    """
    for entry in ledger.select(list(names)):
        if missing := [name for name in _needed_files(entry) if name not in entry.files]:
            raise LedgerError(
                f"{entry.name} in '{ledger.path}' lists no {missing}; expected an adapter in safetensors and its "
                "configuration. Fetch a clean copy of the folder."
            )
    ledger.check_files(list(names))


def refuse_adapters(model: nn.Module) -> None:
    """Raises ValueError if a model is not bare."""
    if hasattr(model, "peft_config"):
        raise ValueError(
            "`base_model` holds adapters already, but the tasks bring their own. Give the bare model: model.unload() "
            "takes adapters off, model.merge_and_unload() keeps what they do."
        )


def _needed_files(entry: TaskEntry) -> list[str]:
    return [f"{TASKS_FOLDER}/{entry.name}/{name}" for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
