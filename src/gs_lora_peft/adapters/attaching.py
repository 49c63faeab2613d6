"""Adapters on a bare model: checked against it, attached, or merged into its weights."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..compat import adapt_layer, dense, head_tying_hidden, is_shard, release_gathered, set_whole, whole
from ..errors import short
from ..ledger import UnusableAdapterError
from .flags import kept_flags
from .task_adapter import REAL_DTYPES, TaskAdapter

# Limit of ‖update‖ / ‖weights‖ of a layer (Frobenius norms). Updates that forget are about as large as the weights; a
# thousand times that destroys the layer.
MAX_RELATIVE_UPDATE = 1e3

# PEFT walks through the whole model for each merge. It needs longer for each further adapter that a layer holds.
_MERGED_TOGETHER = 64


def check_adapters(model: nn.Module, adapters: Sequence[TaskAdapter]) -> None:
    """Checks that adapters fit a bare model, before PEFT changes the model.

    Args:
        model (`torch.nn.Module`):
            The bare model.
        adapters (`Sequence[TaskAdapter]`):
            The adapters.

    Raises:
        UnusableAdapterError: If an adapter belongs to another architecture, lacks weights for a module that its
            configuration names, or is far larger than the weights it changes.
    """
    modules = dict(model.named_modules())
    norms: dict[str, float] = {}  # of the weights, which many adapters change
    for adapter in adapters:
        if misfit := _misfit(modules, adapter, norms):
            name, problem = misfit
            raise UnusableAdapterError(
                f"the adapter of {adapter.name} does not fit this model: {problem}. Do not use it: this package "
                "does not record such files.",
                task=adapter.name,
                file=None,
                name=name,
            )


@contextmanager
def fresh_adapter(model: nn.Module, config: PeftConfig, name: str) -> Iterator[PeftModel]:
    """Wraps a bare model in a `PeftModel` with one new, trainable adapter, for the time of a `with` block.

    Afterwards, also after an error, the model is bare again and in eval mode, with its former weights, buffers and
    `requires_grad` flags. Buffers are restored because no adapter file holds them: running statistics that training
    changed would be lost wherever the adapter is loaded.

    Args:
        model (`torch.nn.Module`):
            The bare model, changed in place.
        config (`peft.PeftConfig`):
            Configuration of the adapter.
        name (`str`):
            Name of the adapter.
    """
    buffers = {buffer_name: buffer.clone() for buffer_name, buffer in model.named_buffers()}
    release_gathered(model)  # flags are those of the shards
    with kept_flags(model):
        with _without_deprecation():
            peft_model = get_peft_model(model, config, adapter_name=name)
        try:
            yield peft_model
        finally:
            peft_model.unload()
            release_gathered(model)
            model.eval()
            for buffer_name, buffer in model.named_buffers():
                before = buffers.get(buffer_name)
                if before is not None and before.shape == buffer.shape:
                    buffer.copy_(before)


def attach_adapters(model: nn.Module, adapters: Sequence[TaskAdapter]) -> PeftModel:
    """Attaches adapters to a bare model, all active and frozen.

    The result equals that of `PeftModel.from_pretrained` and `load_adapter`. Those visit the whole model several times
    for each adapter, about 15 seconds for a hundred. This function visits only the layers that an adapter changes.

    Args:
        model (`torch.nn.Module`):
            The bare model, changed in place.
        adapters (`Sequence[TaskAdapter]`):
            At least one adapter. They must fit the model, see [`check_adapters`].

    Returns:
        `peft.PeftModel`: The wrapped model.
    """
    first = adapters[0]
    empty = LoraConfig(target_modules=DUMMY_TARGET_MODULES, task_type=first.config.task_type, inference_mode=True)
    peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(empty.task_type), PeftModel)
    with head_tying_hidden(model), _without_deprecation():
        peft_model = peft_class(model, empty, adapter_name=first.name, low_cpu_mem_usage=True)
    tuner: Any = peft_model.base_model
    likes: dict[tuple, str] = {}
    with init_empty_weights():  # the weights follow below, so none are initialised at random
        for adapter in adapters:
            tuner.peft_config[adapter.name] = adapter.config
            for path in adapter.pairs:
                like = likes.setdefault((path, *adapter.settings(path)), adapter.name)
                if like != adapter.name:
                    _copy_adapter(model.get_submodule(path), like, adapter.name)
                    continue
                adapt_layer(peft_model, path, adapter.config, adapter.name)
    for adapter in adapters:
        for path, pair in adapter.pairs.items():
            layer: Any = model.get_submodule(path)
            device = layer.get_base_layer().weight.device
            for linear, factor in zip((layer.lora_A[adapter.name], layer.lora_B[adapter.name]), pair, strict=True):
                linear.weight = nn.Parameter(factor.to(device), requires_grad=False)
    tuner.targeted_module_names = list(dict.fromkeys(path for adapter in adapters for path in adapter.pairs))
    tuner.set_adapter([adapter.name for adapter in adapters], inference_mode=True)
    return peft_model


@torch.no_grad()
def merge_adapters(model: nn.Module, adapters: Iterable[TaskAdapter]) -> nn.Module:
    """Merges adapters into the weights of a bare model, one after another, in place.

    The result is bit-equal to the model that later tasks were trained on: the same tensors are added in the same order
    on the CPU. Shards (FSDP 2) are gathered one matrix at a time, so that every process has to call this
    function.

    Args:
        model (`torch.nn.Module`):
            The bare model. Its `requires_grad` flags stay.
        adapters (`Iterable[TaskAdapter]`):
            The adapters, in order. They must fit the model, see [`check_adapters`].

    Returns:
        `torch.nn.Module`: `model`.
    """
    with kept_flags(model):
        waiting = list(adapters)
        while waiting:
            chunk, waiting = waiting[:_MERGED_TOGETHER], waiting[_MERGED_TOGETHER:]
            paths = dict.fromkeys(path for adapter in chunk for path in adapter.pairs)
            layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
            if any(is_shard(layer.weight) for layer in layers.values()):
                _merge_into_shards(layers, chunk)
                continue
            devices = {path: layer.weight.device for path, layer in layers.items()}
            for layer in layers.values():
                layer.to("cpu")  # accelerators round matrix products differently
            try:
                attach_adapters(model, chunk).merge_and_unload(adapter_names=[adapter.name for adapter in chunk])
            except BaseException:  # out of memory, or interrupted: leave no half-wrapped model behind
                for path, layer in layers.items():
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, layer)
                vars(model).pop("peft_config", None)
                raise
            finally:
                for path, device in devices.items():
                    layers[path].to(device)
    return model


def _merge_into_shards(layers: Mapping[str, Any], adapters: Sequence[TaskAdapter]) -> None:
    """Merges adapters into each of their layers by itself, as [`merge_adapters`] merges them into all at once."""
    for path, layer in layers.items():
        weight = layer.weight
        alone = nn.Module()  # holds a copy of this layer, under the same path
        parent = alone
        *folders, name = path.split(".")
        for folder in folders:
            parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        twin = _twin(layer)
        twin.weight = nn.Parameter(whole(weight).to("cpu", copy=True), requires_grad=False)
        parent.add_module(name, twin)
        merge_adapters(alone, [_only(adapter, path) for adapter in adapters if path in adapter.pairs])
        set_whole(weight, alone.get_parameter(f"{path}.weight"))


def _only(adapter: TaskAdapter, path: str) -> TaskAdapter:
    """Returns the part of an adapter that changes one layer."""
    config = copy.copy(adapter.config)
    config.task_type = None  # the layer stands alone, without a head
    return replace(adapter, config=config, pairs={path: adapter.pairs[path]})


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Hides a deprecation warning that PEFT causes and users cannot avoid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _copy_adapter(layer: Any, like: str, name: str) -> None:
    """Gives a layer another adapter, copied from one that it has.

    PEFT needs longer for each adapter that the layer has already. The attributes that belong to an adapter are those
    that PEFT itself lists in order to delete them.
    """
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
        entries = getattr(layer, attribute)
        if like in entries:
            entries[name] = _twin(entries[like])


def _twin(entry: Any) -> Any:
    """Copies a part of an adapter: a number, or a layer whose weights are about to be replaced.

    A layer without children gets its own containers with shared content. `copy.deepcopy` takes twenty times as long,
    half of the time to load a hundred adapters.
    """
    if not isinstance(entry, nn.Module) or any(True for _ in entry.children()):
        return copy.deepcopy(entry)
    twin = copy.copy(entry)
    for attribute, value in vars(twin).items():
        if isinstance(value, dict | set):
            vars(twin)[attribute] = value.copy()
    return twin


def _misfit(modules: Mapping[str, nn.Module], adapter: TaskAdapter, norms: dict[str, float]) -> tuple[str, str] | None:
    """Finds a module or setting of an adapter that does not fit the model; returns its name and the problem."""
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
        if path not in norms:
            norms[path] = _norm(dense(whole(module.weight)))
        if problem := _size_problem(norms[path], adapter, path):
            return path, problem
    paths = adapter.pairs.keys()
    targets = {path for path in modules if path and check_target_module_exists(adapter.config, path)}
    if targets == paths:
        return None
    untrained, untargeted = short(sorted(targets - paths)), short(sorted(paths - targets))
    return (
        "target_modules",
        f"the configuration targets {untrained}, which have no weights, or does not target {untargeted}, which have "
        "weights",
    )


def _size_problem(weight: float, adapter: TaskAdapter, path: str) -> str | None:
    """Describes an update that is far too large for its layer. Layers with zero weights have no limit."""
    factor_a, factor_b = (factor.double() for factor in adapter.pairs[path])
    # ‖BA‖² is the sum over BᵀB ∘ AAᵀ, which avoids BA itself, as large as the layer.
    square = ((factor_b.T @ factor_b) * (factor_a @ factor_a.T)).sum().clamp(min=0)
    update = abs(adapter.scaling(path)) * float(square.sqrt())
    if math.isfinite(update) and (not weight or update <= MAX_RELATIVE_UPDATE * weight):
        return None
    return (
        f"the update of {path!r} has the norm {update:.3g}, its weights have {weight:.3g}; expected at most "
        f"{MAX_RELATIVE_UPDATE:g} times as much"
    )


def _norm(weight: torch.Tensor) -> float:
    """Returns the Frobenius norm of weights of any real dtype, in float32 or wider."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # torch converts half precision without a copy, but has no norm for narrower dtypes.
    return float(torch.linalg.vector_norm(weight if weight.dtype in REAL_DTYPES else weight.to(wide), dtype=wide))
