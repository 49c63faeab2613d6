"""Reading the adapter of a task, which may come from elsewhere: plain LoRA on named modules, and no code."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from pydantic import AfterValidator, Field, Strict
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..checking import AnyNumber, Whole, checked
from ..compat import PEFT_PREFIX
from ..errors import InvalidInputError, short
from ..io import parse_json, public_name, read_limited
from ..ledger import MAX_CONFIG_BYTES, ForgettingLedger, UnusableAdapterError, task_folder
from ..tuner import HEAD_TRAINING_TASKS, MAX_SCALING, check_plain_lora, mapping_problem, names_modules

_A, _B = ".lora_A.weight", ".lora_B.weight"
_HALVES = (torch.float16, torch.bfloat16)
REAL_DTYPES = (torch.float32, torch.float64, *_HALVES)

# Settings that choose modules in other ways than by name.
_OTHER_SELECTORS = ("exclude_modules", "layers_to_transform", "layers_pattern")

# What reading an invalid file raises; an unknown dtype is a KeyError.
_UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, re.error, SafetensorError)


def _module_name(pattern: str) -> str:
    """Accepts names of modules only: a search with a foreign pattern may never end."""
    if not names_modules(pattern):
        raise ValueError("it is a pattern")
    return pattern


_ModuleName = Annotated[str, Strict(), AfterValidator(_module_name)]
_NumberByModule = Annotated[dict[_ModuleName, Any], Field(description="names of modules, each with a number")]

_CONFIG_KINDS: dict[str, Any] = {
    "r": Whole,
    "lora_alpha": Whole | AnyNumber,
    "target_modules": Annotated[list[Annotated[str, Strict()]] | _ModuleName, Field(description="names of modules")],
    "rank_pattern": _NumberByModule,
    "alpha_pattern": _NumberByModule,
}


@dataclass(frozen=True)
class TaskAdapter:
    """The adapter of one task, as plain LoRA on Linear layers.

    Args:
        name (`str`):
            Name of the task.
        config (`peft.LoraConfig`):
            Configuration of the adapter.
        pairs (`dict[str, tuple[Tensor, Tensor]]`):
            Module path → `lora_A` of shape `(rank, inputs)` and `lora_B` of shape `(outputs, rank)`; empty if the
            adapter changes nothing. Half precision is converted to float32, as PEFT does when it loads an adapter.
    """

    name: str
    config: LoraConfig
    pairs: dict[str, tuple[Tensor, Tensor]]

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of the bare model that change."""
        return [f"{path}.weight" for path in self.pairs]

    @cached_property
    def norms(self) -> dict[str, tuple[float, float]]:
        """Frobenius norms of `lora_A` and `lora_B` of each module; infinite or NaN if one of their numbers is."""
        factors = [factor for pair in self.pairs.values() for factor in pair]
        found = iter(torch._foreach_norm(factors) if factors else ())  # none if all groups are zero
        return {path: (next(found).item(), next(found).item()) for path in self.pairs}

    def settings(self, path: str) -> tuple[int, float, bool, float]:
        """Returns rank, α, rank stabilisation and dropout of a module's LoRA layer."""
        rank = _setting(self.config.rank_pattern, path, self.config.r)
        alpha = _setting(self.config.alpha_pattern, path, self.config.lora_alpha)
        return rank, alpha, self.config.use_rslora, self.config.lora_dropout

    def scaling(self, path: str) -> float:
        """Returns the factor of `lora_B @ lora_A`: α / r, or α / √r with rank stabilisation."""
        rank, alpha, use_rslora, _ = self.settings(path)
        return alpha / (math.sqrt(rank) if use_rslora else rank)


def read_adapter(path: Path) -> TaskAdapter:
    """Reads an adapter without a ledger.

    Args:
        path (`Path`):
            Folder of the adapter.

    Raises:
        LedgerError: If it is not plain LoRA on Linear layers.
        OSError: If a file cannot be read.
    """
    return _parsed(path, content_of(path / CONFIG_NAME), content_of(path / SAFETENSORS_WEIGHTS_NAME))


def base_mismatch(ledger: ForgettingLedger, adapter: TaskAdapter) -> str | None:
    """Describes how the base model that an adapter names differs from the ledger's; `None` if it does not."""
    for key, of_ledger in (("base_model_name_or_path", "name_or_path"), ("revision", "revision")):
        found, expected = getattr(adapter.config, key), ledger.base_model.get(of_ledger)
        if found is None or expected is None:
            continue
        if not isinstance(found, str) or expected not in (found, public_name(found)[0]):
            return f"{key} in {CONFIG_NAME} is {short(found)}, but the ledger has {short(expected)}"
    return None


def content_of(path: Path) -> bytes:
    """Reads a file of a task."""
    size = os.path.getsize(path)
    return read_limited(path, min(size, MAX_CONFIG_BYTES) if path.suffix == ".json" else size)


def adapter_of_task(ledger: ForgettingLedger, name: str, contents: Mapping[str, bytes]) -> TaskAdapter:
    """Makes the adapter of a task from the content of its files.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        name (`str`):
            Name of the task.
        contents (`Mapping[str, bytes]`):
            Content of its files by their names.

    Raises:
        UnusableAdapterError: If it is not plain LoRA on Linear layers, or names another base model than the ledger.
    """
    path = task_folder(ledger.folder, name)
    if missing := sorted({CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME} - contents.keys()):
        raise _refused(path, f"it lacks {missing}", missing[0])
    adapter = _parsed(path, contents[CONFIG_NAME], contents[SAFETENSORS_WEIGHTS_NAME])
    if problem := base_mismatch(ledger, adapter):
        raise _refused(path, problem, CONFIG_NAME)
    return adapter


def _parsed(path: Path, config: bytes, weights: bytes) -> TaskAdapter:
    with _in_file(path, CONFIG_NAME):
        lora = LoraConfig.from_peft_type(**{**checked_config(config), "inference_mode": True})
    with _in_file(path, SAFETENSORS_WEIGHTS_NAME):
        adapter = TaskAdapter(path.name, lora, _pairs(load(weights)))
        _check_finite(adapter)
    with _in_file(path, CONFIG_NAME):
        _check_agreement(adapter)
    return adapter


@contextmanager
def _in_file(path: Path, file: str) -> Iterator[None]:
    """Turns errors of the block into an [`UnusableAdapterError`] that names the file."""
    try:
        yield
    except _UNREADABLE as error:
        said = str(error) or type(error).__name__
        raise _refused(
            path, said if file in said else f"{file}: {said}", file, getattr(error, "name", None)
        ) from error


def _refused(path: Path, problem: str, file: str, name: str | None = None) -> UnusableAdapterError:
    return UnusableAdapterError(
        f"the adapter in '{path}' is not accepted: {problem.rstrip('.')}. Do not use it: this package does not write "
        "such files. Fetch a clean copy from a source that you trust.",
        task=path.name,
        file=file,
        name=name,
    )


def checked_config(content: bytes) -> dict[str, Any]:
    """Reads and checks the configuration of an adapter.

    Args:
        content (`bytes`):
            Content of `adapter_config.json`.

    Returns:
        `dict[str, Any]`: The settings.

    Raises:
        ValueError: If it is not plain LoRA on named modules, or would make PEFT run code or train a head.
    """
    values = parse_json(content)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise InvalidInputError(CONFIG_NAME, values, "an object with peft_type 'LORA'")
    check_plain_lora(values, "a published adapter")
    if values.get("task_type") in HEAD_TRAINING_TASKS:
        raise InvalidInputError("task_type", values["task_type"], "a task for which PEFT does not replace the head")
    for name, kind in _CONFIG_KINDS.items():
        value = values.get(name, {} if kind is _NumberByModule else None)
        checked(f"{name} in {CONFIG_NAME}", value, kind)
    if problem := mapping_problem(values.get("auto_mapping")):
        raise ValueError(problem)
    for name in _OTHER_SELECTORS:
        if values.get(name):
            raise InvalidInputError(f"{name} in {CONFIG_NAME}", values[name], "it to be left out")
    values.pop("runtime_config", None)  # settings of the machine that wrote it; PEFT ignores them, too
    return values


def _check_agreement(adapter: TaskAdapter) -> None:
    """Checks that the configuration fits the weights."""
    if not adapter.pairs and adapter.config.target_modules != DUMMY_TARGET_MODULES:
        raise InvalidInputError("target_modules", adapter.config.target_modules, "none, because there are no weights")
    for module, (factor_a, _) in adapter.pairs.items():
        rank, scaling = adapter.settings(module)[0], adapter.scaling(module)
        if len(factor_a) != rank:
            fix = f"Its weights have the rank {len(factor_a)}, which its configuration contradicts."
            raise InvalidInputError(f"the rank of {module}", rank, f"{len(factor_a)}", fix)
        if not (math.isfinite(scaling) and 0 < abs(scaling) <= MAX_SCALING):
            fix = f"It gives {module!r} a scaling of {scaling:g}."
            expected = f"a number other than 0, at most {MAX_SCALING:g}"
            raise InvalidInputError(f"the scaling of {module}", scaling, expected, fix)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = sorted(key.removeprefix(PEFT_PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A))
    expected = {f"{PEFT_PREFIX}{path}{factor}" for path in paths for factor in (_A, _B)}
    if odd := sorted(expected ^ tensors.keys()):
        raise InvalidInputError("the keys", list(tensors), f"only pairs of lora_A and lora_B; see {short(odd[0])}")
    wide = {key: value.float() if value.dtype in _HALVES else value for key, value in tensors.items()}
    pairs = {path: (wide[f"{PEFT_PREFIX}{path}{_A}"], wide[f"{PEFT_PREFIX}{path}{_B}"]) for path in paths}
    for path, (factor_a, factor_b) in pairs.items():
        fits = factor_a.dim() == factor_b.dim() == 2 and factor_a.shape[0] == factor_b.shape[1] > 0
        if not fits or not {factor_a.dtype, factor_b.dtype} <= {*REAL_DTYPES}:
            found = [f"{factor.dtype} {list(factor.shape)}" for factor in (factor_a, factor_b)]
            raise InvalidInputError(path, found, "two matrices of real numbers with the same rank")
    return pairs


def _check_finite(adapter: TaskAdapter) -> None:
    for path, norms in adapter.norms.items():
        if all(map(math.isfinite, norms)):
            continue
        for factor in adapter.pairs[path]:  # a norm may be infinite because of large numbers
            if not (finite := factor.isfinite()).all():
                raise InvalidInputError(path, factor[~finite][0].item(), "finite numbers, not NaN or infinity")


def _setting(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Returns a module's own rank or α, looked up as PEFT does."""
    return patterns.get(get_pattern_key(list(patterns), path), default) if patterns else default
