"""The adapters of tasks: read from their folder once, checked, and compared with the model they are meant for."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..storage import parse_json, read_limited, safe_join
from ..tuner.config import HEAD_TRAINING_TASKS, check_plain_lora
from .entry import TaskEntry
from .layout import MAX_CONFIG_BYTES, TASKS_FOLDER, task_folder
from .ledger import ForgettingLedger
from .plain import LedgerError, short

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TaskAdapter:
    """The adapter of one task, as plain LoRA on Linear layers.

    Args:
        name (`str`): The task.
        config (`peft.LoraConfig`): Its configuration.
        pairs (`dict[str, tuple[Tensor, Tensor]]`): `lora_A` (rank × inputs) and `lora_B` (outputs × rank) by module
            path; empty for an adapter that changes nothing. Half precision is widened to float32, as PEFT does when it
            loads an adapter.
    """

    name: str
    config: LoraConfig
    pairs: dict[str, tuple[Tensor, Tensor]]

    def settings(self, path: str) -> tuple[int, float, bool, float]:
        """What a LoRA layer is made from beside its matrices: rank, α, rank stabilisation, dropout."""
        rank = _setting(self.config.rank_pattern, path, self.config.r)
        alpha = _setting(self.config.alpha_pattern, path, self.config.lora_alpha)
        return rank, alpha, self.config.use_rslora, self.config.lora_dropout

    def scaling(self, path: str) -> float:
        """What the product of a pair is multiplied by: α / r, or α / √r with rank stabilisation."""
        rank, alpha, use_rslora, _ = self.settings(path)
        return alpha / (math.sqrt(rank) if use_rslora else rank)


def check_tasks(ledger: ForgettingLedger, names: Sequence[str]) -> None:
    """Checks that the ledger vouches for an adapter of each task, and that the files are the ones it vouches for.

    Raises:
        LedgerError: It does not, or files are missing or differ.
    """
    for entry in ledger.select(list(names)):
        _check_listed(ledger, entry)
    ledger.check_files(list(names))


def read_adapters(ledger: ForgettingLedger, tasks: int | Sequence[str] | None = None) -> list[TaskAdapter]:
    """Reads the adapters of some tasks (see [`~ForgettingLedger.select`]).

    Each file is read once: what is returned comes from the very bytes whose hash was compared with the ledger's.

    Raises:
        LedgerError: As [`check_tasks`]; or an adapter is no plain LoRA on Linear layers.
    """
    entries = ledger.select(tasks)
    for entry in entries:
        _check_listed(ledger, entry)
    return [_read_vouched(ledger, entry, entries) for entry in entries]


def read_adapter(path: Path) -> TaskAdapter:
    """Reads the adapter in the folder of one task, without a ledger to vouch for it.

    Raises:
        LedgerError: It is no plain LoRA on Linear layers.
        OSError, ValueError: It cannot be read.
    """
    return _parsed(path, _read(path / CONFIG_NAME), _read(path / SAFETENSORS_WEIGHTS_NAME))


def check_adapters(model: nn.Module, adapters: Sequence[TaskAdapter]) -> None:
    """Checks that adapters can be put onto a bare model. PEFT would find out only while it changes the model.

    Raises:
        LedgerError: An adapter belongs to another architecture, or leaves out what its configuration names.
    """
    modules = dict(model.named_modules())
    for adapter in adapters:
        if problem := _misfit(modules, adapter):
            raise LedgerError(
                f"the adapter of {adapter.name} cannot be put onto this model: {problem}. Do not use it: the ledger "
                "vouches for a file that is not what it should be."
            )


def _check_listed(ledger: ForgettingLedger, entry: TaskEntry) -> None:
    needed = [f"{TASKS_FOLDER}/{entry.name}/{name}" for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
    if missing := [name for name in needed if name not in entry.files]:
        raise LedgerError(
            f"{entry.name} in '{ledger.path}' lists no {missing}; expected an adapter in safetensors and its "
            "configuration. Fetch a clean copy of the folder."
        )


def _read_vouched(ledger: ForgettingLedger, entry: TaskEntry, entries: Sequence[TaskEntry]) -> TaskAdapter:
    contents = {}
    for name, digest in entry.files.items():
        content, problem = b"", "it was changed while it was read"
        try:
            content = _read(safe_join(ledger.folder, name))
        except (OSError, ValueError) as error:
            problem = str(error)
        if hashlib.sha256(content).hexdigest() != digest:
            ledger.check_files([entry.name for entry in entries])  # says of each file what is wrong with it
            raise LedgerError(f"'{name}' in '{ledger.folder}' cannot be used: {problem}")
        contents[name] = content
    own = f"{TASKS_FOLDER}/{entry.name}"
    config, weights = contents[f"{own}/{CONFIG_NAME}"], contents[f"{own}/{SAFETENSORS_WEIGHTS_NAME}"]
    return _parsed(task_folder(ledger.folder, entry.name), config, weights)


def _read(path: Path) -> bytes:
    size = os.path.getsize(path)
    return read_limited(path, min(size, MAX_CONFIG_BYTES) if path.suffix == ".json" else size)


def _parsed(path: Path, config: bytes, weights: bytes) -> TaskAdapter:
    try:
        lora = LoraConfig.from_peft_type(**{**_checked_config(config), "inference_mode": True})
        adapter = TaskAdapter(path.name, lora, _pairs(load(weights)))
        if not adapter.pairs and lora.target_modules != DUMMY_TARGET_MODULES:
            raise ValueError(f"it has no weights, but targets {short(lora.target_modules)}")
        for module, (factor_a, _) in adapter.pairs.items():
            if len(factor_a) != adapter.settings(module)[0]:
                raise ValueError(f"on {module!r} it has the rank {len(factor_a)}, which its configuration contradicts")
            adapter.scaling(module)
    except (ValueError, TypeError, re.error, SafetensorError) as error:
        raise LedgerError(
            f"the adapter in '{path}' is not accepted: {str(error).rstrip('.')}. Do not use it: it is not what this "
            "package writes. Fetch a clean copy from somebody you trust."
        ) from error
    return adapter


def _checked_config(content: bytes) -> dict[str, Any]:
    values = parse_json(content)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG_NAME} is {short(values)}; expected an object with peft_type 'LORA'")
    check_plain_lora(values, "a published adapter")
    if values.get("task_type") in HEAD_TRAINING_TASKS:
        raise ValueError(f"task_type is {values['task_type']!r}, for which PEFT would replace the model's head")
    expected = {"r": (int,), "lora_alpha": (int, float), "target_modules": (list, str)}
    for name, kinds in {**expected, "rank_pattern": (dict,), "alpha_pattern": (dict,)}.items():
        value = values.get(name, None if name in expected else {})
        if type(value) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} in {CONFIG_NAME} is {short(value)}; expected {names}")
    if isinstance(values["target_modules"], str):
        re.compile(values["target_modules"])
    values.pop("runtime_config", None)  # concerns the machine it was written on; PEFT ignores it, too
    return values


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = sorted(key.removeprefix(_PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A))
    expected = {f"{_PREFIX}{path}{factor}" for path in paths for factor in (_A, _B)}
    if odd := sorted(expected ^ tensors.keys()):
        raise ValueError(f"expected pairs of lora_A and lora_B alone, found or missed {short(odd[0])}")
    wide = {key: value.float() if value.dtype in _HALVES else value for key, value in tensors.items()}
    pairs = {path: (wide[f"{_PREFIX}{path}{_A}"], wide[f"{_PREFIX}{path}{_B}"]) for path in paths}
    for path, (factor_a, factor_b) in pairs.items():
        fits = factor_a.dim() == factor_b.dim() == 2 and factor_a.shape[0] == factor_b.shape[1] > 0
        if not fits or not factor_a.is_floating_point() or not factor_b.is_floating_point():
            found = " and ".join(f"{factor.dtype} {list(factor.shape)}" for factor in (factor_a, factor_b))
            raise ValueError(f"on {path!r} it has {found}; expected two matrices of one rank, of real numbers")
    return pairs


def _setting(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """A module's own rank or α, found in the way PEFT finds it."""
    return patterns.get(get_pattern_key(list(patterns), path), default) if patterns else default


def _misfit(modules: Mapping[str, nn.Module], adapter: TaskAdapter) -> str | None:
    """Says why an adapter does not go together with the modules of a model and with its own configuration."""
    for path, (factor_a, factor_b) in adapter.pairs.items():
        module = modules.get(path)
        if not isinstance(module, (nn.Linear, Conv1D)):
            return f"the model has no Linear layer {path!r}, but the adapter changes one"
        is_conv = isinstance(module, Conv1D)
        inputs, outputs = (module.nx, module.nf) if is_conv else (module.in_features, module.out_features)
        found, rank = (tuple(factor_a.shape), tuple(factor_b.shape)), len(factor_a)
        if found != ((rank, inputs), (outputs, rank)):
            return (
                f"for {path!r} the adapter has matrices of shape {found[0]} and {found[1]}; expected {(rank, inputs)} "
                f"and {(outputs, rank)}"
            )
    paths = adapter.pairs.keys()
    targets = {path for path in modules if path and check_target_module_exists(adapter.config, path)}
    if targets == paths:
        return None
    return (
        f"the configuration targets {short(sorted(targets - paths))}, for which there are no weights, or leaves out "
        f"{short(sorted(paths - targets))}, for which there are"
    )
