"""The configuration of an adapter from elsewhere: plain LoRA on modules that it names, and nothing that runs code."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from pydantic import AfterValidator, Field, Strict
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..checking import AnyNumber, Whole, checked
from ..errors import InvalidInputError, short
from ..io import parse_json, public_name, read_limited, safe_join
from ..ledger import (
    MAX_CONFIG_BYTES,
    TASKS_FOLDER,
    FilesDifferError,
    ForgettingLedger,
    InvalidLedgerError,
    TaskEntry,
    UnusableAdapterError,
    task_folder,
)
from ..tuner import HEAD_TRAINING_TASKS, MAX_SCALING, check_plain_lora, mapping_problem, names_modules

# What in a configuration would choose modules by other means than their names.
_CHOOSING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def _naming(pattern: str) -> str:
    """A pattern that names modules: a search by a foreign one may never end."""
    if not names_modules(pattern):
        raise ValueError("it is a pattern")
    return pattern


_Pattern = Annotated[str, Strict(), AfterValidator(_naming)]


_Patterns = Annotated[dict[_Pattern, Any], Field(description="names of modules, each with a number")]


_KINDS: dict[str, Any] = {
    "r": Whole,
    "lora_alpha": Whole | AnyNumber,
    "target_modules": Annotated[list[Annotated[str, Strict()]] | _Pattern, Field(description="names of modules")],
    "rank_pattern": _Patterns,
    "alpha_pattern": _Patterns,
}


def checked_config(content: bytes) -> dict[str, Any]:
    """The settings in the configuration of an adapter, which come from elsewhere.

    Args:
        content (`bytes`):
            The content of `adapter_config.json`.

    Raises:
        ValueError: It is not plain LoRA on modules that it names, or PEFT would run code or train a head by it.
    """
    values = parse_json(content)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise InvalidInputError(CONFIG_NAME, values, "an object with peft_type 'LORA'")
    check_plain_lora(values, "a published adapter")
    if values.get("task_type") in HEAD_TRAINING_TASKS:
        raise InvalidInputError("task_type", values["task_type"], "a task for which PEFT does not replace the head")
    for name, kind in _KINDS.items():
        value = values.get(name, {} if kind is _Patterns else None)
        checked(f"{name} in {CONFIG_NAME}", value, kind)
    if problem := mapping_problem(values.get("auto_mapping")):
        raise ValueError(problem)
    for name in _CHOOSING:
        if values.get(name):
            raise InvalidInputError(f"{name} in {CONFIG_NAME}", values[name], "it to be left out")
    values.pop("runtime_config", None)  # concerns the machine it was written on; PEFT ignores it, too
    return values


_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


_HALVES = (torch.float16, torch.bfloat16)


# What reading a file raises that is not what it should be; of a dtype that torch does not know, a KeyError.
_UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, re.error, SafetensorError)


_DTYPES = (torch.float32, torch.float64, *_HALVES)


# How much larger than the weights of its layer an update may be (Frobenius norms): what forgets is about as large as
# the weights, and nothing is left of a layer under an update of a thousand times its size.
MAX_RELATIVE_UPDATE = 1e3


@dataclass(frozen=True)
class TaskAdapter:
    """The adapter of one task, as plain LoRA on Linear layers.

    Args:
        name (`str`):
            The task.
        config (`peft.LoraConfig`):
            Its configuration.
        pairs (`dict[str, tuple[Tensor, Tensor]]`):
            `lora_A` (rank × inputs) and `lora_B` (outputs × rank) by module path; empty for an adapter that changes
            nothing. Half precision is widened to float32, as PEFT does when it loads an adapter.
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
    return [vouched_adapter(ledger, entry)[0] for entry in ledger.select(tasks)]


def vouched_adapter(ledger: ForgettingLedger, entry: TaskEntry) -> tuple[TaskAdapter, dict[str, bytes]]:
    """Reads the files of one task, also of one that was revoked.

    Returns:
        The adapter, and the content of every file by its name in the task's folder: the bytes that were checked.

    Raises:
        LedgerError: As [`read_adapters`].
    """
    _check_listed(ledger, entry)
    contents, problems = {}, {}
    for name, digest in entry.files.items():
        try:
            content = _read(safe_join(ledger.folder, name))
        except (OSError, ValueError) as error:
            problems[name] = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            continue
        contents[Path(name).name] = content
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            problems[name] = f"changed: SHA-256 recorded {digest[:12]}..., found {found[:12]}..."
    if problems:
        raise FilesDifferError.of(ledger.folder, problems)
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
        if misfit := _misfit(modules, adapter):
            name, problem = misfit
            raise UnusableAdapterError(
                f"the adapter of {adapter.name} cannot be put onto this model: {problem}. Do not use it: the ledger "
                "vouches for a file that is not what it should be.",
                task=adapter.name,
                file=None,
                name=name,
            )


def _check_listed(ledger: ForgettingLedger, entry: TaskEntry) -> None:
    needed = [f"{TASKS_FOLDER}/{entry.name}/{name}" for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)]
    if missing := [name for name in needed if name not in entry.files]:
        expected = f"also {missing}: an adapter in safetensors and its configuration"
        fix = f"'{ledger.path}' is not accepted. Fetch a clean copy of the folder."
        raise InvalidLedgerError(f"{entry.name}.files", list(entry.files), expected, fix)


def _parsed_for(ledger: ForgettingLedger, name: str, contents: Mapping[str, bytes]) -> TaskAdapter:
    path = task_folder(ledger.folder, name)
    if missing := sorted({CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME} - contents.keys()):
        raise _refused(path, f"it lacks {missing}", missing[0])
    adapter = _parsed(path, contents[CONFIG_NAME], contents[SAFETENSORS_WEIGHTS_NAME])
    if problem := base_problem(ledger, adapter):
        raise _refused(path, problem, CONFIG_NAME)
    return adapter


def _read(path: Path) -> bytes:
    size = os.path.getsize(path)
    return read_limited(path, min(size, MAX_CONFIG_BYTES) if path.suffix == ".json" else size)


def _parsed(path: Path, config: bytes, weights: bytes) -> TaskAdapter:
    with _in_file(path, CONFIG_NAME):
        lora = LoraConfig.from_peft_type(**{**checked_config(config), "inference_mode": True})
    with _in_file(path, SAFETENSORS_WEIGHTS_NAME):
        adapter = TaskAdapter(path.name, lora, _pairs(load(weights)))
    with _in_file(path, CONFIG_NAME):
        _check_agreement(adapter)
    return adapter


@contextmanager
def _in_file(path: Path, file: str) -> Iterator[None]:
    """Refuses an adapter, and names the file, if something is wrong with its content."""
    try:
        yield
    except _UNREADABLE as error:
        said = str(error) or type(error).__name__
        raise _refused(
            path, said if file in said else f"{file}: {said}", file, getattr(error, "name", None)
        ) from error


def _refused(path: Path, problem: str, file: str, name: str | None = None) -> UnusableAdapterError:
    return UnusableAdapterError(
        f"the adapter in '{path}' is not accepted: {problem.rstrip('.')}. Do not use it: it is not what this package "
        "writes. Fetch a clean copy from a source that you trust.",
        task=path.name,
        file=file,
        name=name,
    )


def _check_agreement(adapter: TaskAdapter) -> None:
    """Checks that weights and configuration belong together."""
    if not adapter.pairs and adapter.config.target_modules != DUMMY_TARGET_MODULES:
        raise InvalidInputError("target_modules", adapter.config.target_modules, "none, because there are no weights")
    for module, (factor_a, _) in adapter.pairs.items():
        rank, scaling = adapter.settings(module)[0], adapter.scaling(module)
        if len(factor_a) != rank:
            fix = f"Its weights have the rank {len(factor_a)}, which its configuration contradicts."
            raise InvalidInputError(f"the rank of {module}", rank, f"{len(factor_a)}", fix)
        if not (math.isfinite(scaling) and 0 < abs(scaling) <= MAX_SCALING):
            fix = f"It gives {module!r} a scaling of {scaling:g}."
            expected = f"a number other than 0, of {MAX_SCALING:g} at most"
            raise InvalidInputError(f"the scaling of {module}", scaling, expected, fix)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = sorted(key.removeprefix(_PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A))
    expected = {f"{_PREFIX}{path}{factor}" for path in paths for factor in (_A, _B)}
    if odd := sorted(expected ^ tensors.keys()):
        raise InvalidInputError("the keys", list(tensors), f"pairs of lora_A and lora_B alone; see {short(odd[0])}")
    wide = {key: value.float() if value.dtype in _HALVES else value for key, value in tensors.items()}
    pairs = {path: (wide[f"{_PREFIX}{path}{_A}"], wide[f"{_PREFIX}{path}{_B}"]) for path in paths}
    for path, (factor_a, factor_b) in pairs.items():
        fits = factor_a.dim() == factor_b.dim() == 2 and factor_a.shape[0] == factor_b.shape[1] > 0
        if not fits or not {factor_a.dtype, factor_b.dtype} <= {*_DTYPES}:
            found = [f"{factor.dtype} {list(factor.shape)}" for factor in (factor_a, factor_b)]
            raise InvalidInputError(path, found, "two matrices of one rank, of real numbers")
        for factor in (factor_a, factor_b):
            if not (finite := factor.isfinite()).all():
                raise InvalidInputError(path, factor[~finite][0].item(), "finite numbers, not NaN or infinity")
    return pairs


def _setting(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """A module's own rank or α, found in the way PEFT finds it."""
    return patterns.get(get_pattern_key(list(patterns), path), default) if patterns else default


def _misfit(modules: Mapping[str, nn.Module], adapter: TaskAdapter) -> tuple[str, str] | None:
    """Says what of an adapter does not go together with a model or with its own configuration, and why."""
    for path, (factor_a, factor_b) in adapter.pairs.items():
        module = modules.get(path)
        if not isinstance(module, (nn.Linear, Conv1D)):
            return path, f"the model has no Linear layer {path!r}, but the adapter changes one"
        is_conv = isinstance(module, Conv1D)
        inputs, outputs = (module.nx, module.nf) if is_conv else (module.in_features, module.out_features)
        found, rank = (tuple(factor_a.shape), tuple(factor_b.shape)), len(factor_a)
        if found != ((rank, inputs), (outputs, rank)):
            expected = f"{(rank, inputs)} and {(outputs, rank)}"
            return path, f"for {path!r} its matrices have the shapes {found[0]} and {found[1]}; expected {expected}"
        if problem := _size_problem(module, adapter, path):
            return path, problem
    paths = adapter.pairs.keys()
    targets = {path for path in modules if path and check_target_module_exists(adapter.config, path)}
    if targets == paths:
        return None
    without, left_out = short(sorted(targets - paths)), short(sorted(paths - targets))
    return (
        "target_modules",
        f"the configuration targets {without}, for which there are no weights, or leaves out {left_out}, for which "
        "there are",
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
