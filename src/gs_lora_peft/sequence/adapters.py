"""The adapters of tasks: read from their folder once, checked, and compared with the model they are meant for."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from ..errors import short
from ..storage import parse_json, public_name, read_limited, safe_join
from ..tuner.config import HEAD_TRAINING_TASKS, MAX_SCALING, check_plain_lora, mapping_problem
from ..tuner.name_patterns import names_modules
from .entry import TaskEntry
from .layout import MAX_CONFIG_BYTES, TASKS_FOLDER, task_folder
from .ledger import ForgettingLedger
from .plain import LedgerError

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_HALVES = (torch.float16, torch.bfloat16)
# What reading a file raises that is not what it should be; of a dtype that torch does not know, a KeyError.
_UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, re.error, SafetensorError)
_DTYPES = (torch.float32, torch.float64, *_HALVES)
# How much larger than the weights of its layer an update may be (Frobenius norms): what forgets is about as large as
# the weights, and nothing is left of a layer under an update of a thousand times its size.
MAX_RELATIVE_UPDATE = 1e3
# What in a configuration would choose modules by other means than their names.
_CHOOSING = ("exclude_modules", "layers_to_transform", "layers_pattern")


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
        LedgerError: As [`check_tasks`]; or an adapter is not plain LoRA on Linear layers, names another base model
            than the ledger, or holds a value that is not finite.
    """
    entries = ledger.select(tasks)
    for entry in entries:
        _check_listed(ledger, entry)
    try:
        return [vouched_adapter(ledger, entry)[0] for entry in entries]
    except LedgerError:
        ledger.check_files([entry.name for entry in entries])  # says of every file what is wrong with it
        raise


def vouched_adapter(ledger: ForgettingLedger, entry: TaskEntry) -> tuple[TaskAdapter, dict[str, bytes]]:
    """Reads the files of one task, also of one that was revoked.

    Returns:
        The adapter, and the content of every file by its name in the task's folder: the bytes that were checked.

    Raises:
        LedgerError: As [`read_adapters`].
    """
    _check_listed(ledger, entry)
    contents = {}
    for name, digest in entry.files.items():
        content, problem = b"", "it is not the file that the ledger vouches for"
        try:
            content = _read(safe_join(ledger.folder, name))
        except (OSError, ValueError) as error:
            problem = str(error)
        if hashlib.sha256(content).hexdigest() != digest:
            raise LedgerError(f"'{name}' in '{ledger.folder}' cannot be used: {problem}")
        contents[Path(name).name] = content
    return _parsed_for(ledger, entry.name, contents), contents


def new_adapter(ledger: ForgettingLedger, name: str) -> tuple[TaskAdapter, dict[str, str]]:
    """Reads the files of a task that is about to be added to the ledger.

    Returns:
        The adapter, and the SHA-256 of every file by its path relative to the ledger's folder: those of the very bytes
        that the adapter was made from.

    Raises:
        LedgerError: It is not plain LoRA on Linear layers.
        OSError, ValueError: It cannot be read.
    """
    contents = {path.name: _read(path) for path in sorted(task_folder(ledger.folder, name).iterdir())}
    files = {f"{TASKS_FOLDER}/{name}/{file}": hashlib.sha256(raw).hexdigest() for file, raw in contents.items()}
    return _parsed_for(ledger, name, contents), files


def read_adapter(path: Path) -> TaskAdapter:
    """Reads an adapter that no ledger vouches for.

    Raises:
        LedgerError: It is not plain LoRA on Linear layers.
        OSError, ValueError: It cannot be read.
    """
    return _parsed(path, _read(path / CONFIG_NAME), _read(path / SAFETENSORS_WEIGHTS_NAME))


def base_problem(ledger: ForgettingLedger, adapter: TaskAdapter) -> str | None:
    """Says in what way an adapter's configuration names another base model than the ledger; `None` if it does not."""
    for key, of_ledger in (("base_model_name_or_path", "name_or_path"), ("revision", "revision")):
        found, expected = getattr(adapter.config, key), ledger.base_model.get(of_ledger)
        if found is None or expected is None:
            continue
        if not isinstance(found, str) or expected not in (found, public_name(found)[0]):
            return f"{key} in {CONFIG_NAME} is {short(found)}, but the ledger has {short(expected)}"
    return None


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


def _parsed_for(ledger: ForgettingLedger, name: str, contents: Mapping[str, bytes]) -> TaskAdapter:
    path = task_folder(ledger.folder, name)
    if missing := sorted({CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME} - contents.keys()):
        raise _refused(path, f"it lacks {missing}")
    adapter = _parsed(path, contents[CONFIG_NAME], contents[SAFETENSORS_WEIGHTS_NAME])
    if problem := base_problem(ledger, adapter):
        raise _refused(path, problem)
    return adapter


def _read(path: Path) -> bytes:
    size = os.path.getsize(path)
    return read_limited(path, min(size, MAX_CONFIG_BYTES) if path.suffix == ".json" else size)


def _parsed(path: Path, config: bytes, weights: bytes) -> TaskAdapter:
    try:
        with _in_file(CONFIG_NAME):
            lora = LoraConfig.from_peft_type(**{**_checked_config(config), "inference_mode": True})
        with _in_file(SAFETENSORS_WEIGHTS_NAME):
            adapter = TaskAdapter(path.name, lora, _pairs(load(weights)))
        if not adapter.pairs and lora.target_modules != DUMMY_TARGET_MODULES:
            raise ValueError(f"it has no weights, but targets {short(lora.target_modules)}")
        for module, (factor_a, _) in adapter.pairs.items():
            if len(factor_a) != adapter.settings(module)[0]:
                raise ValueError(f"on {module!r} it has the rank {len(factor_a)}, which its configuration contradicts")
            scaling = adapter.scaling(module)
            if not (math.isfinite(scaling) and 0 < abs(scaling) <= MAX_SCALING):
                raise ValueError(
                    f"{CONFIG_NAME} gives {module!r} a scaling of {scaling:g}; expected a number other than 0, of "
                    f"{MAX_SCALING:g} at most"
                )
    except _UNREADABLE as error:
        raise _refused(path, str(error)) from error
    return adapter


@contextmanager
def _in_file(name: str) -> Iterator[None]:
    """Names the file in what is wrong with its content."""
    try:
        yield
    except _UNREADABLE as error:
        said = str(error) or type(error).__name__
        raise ValueError(said if name in said else f"{name}: {said}") from error


def _refused(path: Path, problem: str) -> LedgerError:
    return LedgerError(
        f"the adapter in '{path}' is not accepted: {problem.rstrip('.')}. Do not use it: it is not what this package "
        "writes. Fetch a clean copy from a source that you trust."
    )


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
    if problem := mapping_problem(values.get("auto_mapping")):
        raise ValueError(problem)
    _check_choice(values)
    values.pop("runtime_config", None)  # concerns the machine it was written on; PEFT ignores it, too
    return values


def _check_choice(values: Mapping[str, Any]) -> None:
    """Checks that a configuration names its modules: a search by a foreign pattern may never end."""
    targets = values["target_modules"]
    patterns = {"target_modules": [targets] if isinstance(targets, str) else []}
    patterns |= {name: list(values.get(name) or ()) for name in ("rank_pattern", "alpha_pattern")}
    for name, keys in patterns.items():
        if odd := [key for key in keys if not names_modules(key)]:
            raise ValueError(f"{name} in {CONFIG_NAME} has the pattern {short(odd[0])}; expected names of modules")
    if not isinstance(targets, str) and (odd := [name for name in targets if not isinstance(name, str)]):
        raise ValueError(f"target_modules in {CONFIG_NAME} has {short(odd[0])}; expected names of modules")
    if chosen := [name for name in _CHOOSING if values.get(name)]:
        raise ValueError(f"{chosen[0]} in {CONFIG_NAME} is {short(values[chosen[0]])}; expected it to be left out")


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = sorted(key.removeprefix(_PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A))
    expected = {f"{_PREFIX}{path}{factor}" for path in paths for factor in (_A, _B)}
    if odd := sorted(expected ^ tensors.keys()):
        raise ValueError(f"expected pairs of lora_A and lora_B alone, found or missed {short(odd[0])}")
    wide = {key: value.float() if value.dtype in _HALVES else value for key, value in tensors.items()}
    pairs = {path: (wide[f"{_PREFIX}{path}{_A}"], wide[f"{_PREFIX}{path}{_B}"]) for path in paths}
    for path, (factor_a, factor_b) in pairs.items():
        fits = factor_a.dim() == factor_b.dim() == 2 and factor_a.shape[0] == factor_b.shape[1] > 0
        if not fits or not {factor_a.dtype, factor_b.dtype} <= {*_DTYPES}:
            found = " and ".join(f"{factor.dtype} {list(factor.shape)}" for factor in (factor_a, factor_b))
            raise ValueError(f"on {path!r} it has {found}; expected two matrices of one rank, of real numbers")
        if not (factor_a.isfinite().all() and factor_b.isfinite().all()):
            raise ValueError(f"on {path!r} it has NaN or infinity; expected finite numbers")
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
        if problem := _size_problem(module, adapter, path):
            return problem
    paths = adapter.pairs.keys()
    targets = {path for path in modules if path and check_target_module_exists(adapter.config, path)}
    if targets == paths:
        return None
    return (
        f"the configuration targets {short(sorted(targets - paths))}, for which there are no weights, or leaves out "
        f"{short(sorted(paths - targets))}, for which there are"
    )


def _size_problem(module: nn.Linear | Conv1D, adapter: TaskAdapter, path: str) -> str | None:
    """Says that an update is absurdly large for its layer; a layer that is all zeros says nothing."""
    factor_a, factor_b = (factor.double() for factor in adapter.pairs[path])
    # ‖BA‖² is the sum over BᵀB ∘ AAᵀ: the product itself, which is as large as the layer, is not formed.
    square = ((factor_b.T @ factor_b) * (factor_a @ factor_a.T)).sum().clamp(min=0)
    update = abs(adapter.scaling(path)) * float(square.sqrt())
    weight = _norm(module.weight.detach())
    if math.isfinite(update) and (not weight or update <= MAX_RELATIVE_UPDATE * weight):
        return None
    return (
        f"for {path!r} its update has the norm {update:.3g}, with {weight:.3g} of the weights; expected "
        f"{MAX_RELATIVE_UPDATE:g} times that at most"
    )


def _norm(weight: Tensor) -> float:
    """The Frobenius norm of weights of any real dtype, in float32 at least."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # torch widens halves on the way, without a copy; other narrow dtypes have no norm.
    return float(torch.linalg.vector_norm(weight if weight.dtype in _DTYPES else weight.to(wide), dtype=wide))
