"""Adapters on a bare model: checked against it, attached, or merged into its weights."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..compat import activate, adapt_layer, dense, head_tying_hidden, local, release_gathered, set_whole, whole
from ..errors import short
from ..ledger import UnusableAdapterError
from .flags import kept_flags
from .task_adapter import REAL_DTYPES, TaskAdapter

# Limit of ‖update‖ / ‖weights‖ of a layer (Frobenius norms). Updates that forget are about as large as the weights; a
# thousand times that destroys the layer.
MAX_RELATIVE_UPDATE = 1e3

# Squares of smaller numbers are no longer numbers of single precision.
_TINY = 1e-15


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
    places = _Places(model)
    for adapter in adapters:
        if misfit := _misfit(places, adapter):
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
    """Attaches adapters to a bare model, all active, frozen and in eval mode.

    The result equals that of `PeftModel.from_pretrained` and `load_adapter`. Those visit the whole model several times
    for each adapter, about 15 seconds for a hundred. This function visits only the layers that an adapter changes.

    Args:
        model (`torch.nn.Module`):
            The bare model in eval mode, changed in place.
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
    tuner.peft_config.update({adapter.name: adapter.config for adapter in adapters})
    by_layer, names = _by_layer(adapters), [adapter.name for adapter in adapters]
    for path, own in by_layer.items():
        activate(_adapted(peft_model, path, own), list(names))
    tuner.targeted_module_names, tuner.active_adapter = list(by_layer), names
    tuner.training = peft_model.training = False
    return peft_model


def _adapted(model: PeftModel, path: str, adapters: Sequence[TaskAdapter]) -> Any:
    """Puts adapters on one layer, frozen and in eval mode; returns the layer.

    PEFT makes one of those that are made alike, and the others are its copies: PEFT needs longer for each adapter that
    the layer has already. What belongs to an adapter is what PEFT itself lists in order to delete it.
    """
    tuner: Any = model.base_model
    layer: Any = None
    copies: dict[tuple, list[tuple[Any, Callable[[], Any]]]] = {}
    for adapter in adapters:
        name, settings = adapter.name, adapter.settings(path)
        if settings in copies:
            for entries, copied in copies[settings]:
                entries[name] = copied()
        else:
            with init_empty_weights():  # the weights follow below, so none are initialised at random
                adapt_layer(model, path, adapter.config, name)
            layer = tuner.model.get_submodule(path).eval()
            listed = (getattr(layer, one) for one in (*layer.adapter_layer_names, *layer.other_param_names))
            # Plain dictionaries: the checks of a `ModuleDict` take longer than the copies.
            plain = (one._modules if isinstance(one, nn.ModuleDict) else one for one in listed)
            copies[settings] = [(entries, _copies(entries[name])) for entries in plain if name in entries]
        device = layer.get_base_layer().weight.device
        for factors, factor in zip((layer.lora_A, layer.lora_B), adapter.pairs[path], strict=True):
            factors[name]._parameters["weight"] = nn.Parameter(factor.to(device), requires_grad=False)
    return layer


def _copies(entry: Any) -> Callable[[], Any]:
    """Returns what copies a part of an adapter: a number, or a layer whose weights are about to be replaced.

    A layer without children gets its own containers with shared content. `copy.deepcopy` takes twenty times as long.
    """
    if isinstance(entry, (int, float)):
        return lambda: entry
    if not isinstance(entry, nn.Module) or any(True for _ in entry.children()):
        return lambda: copy.deepcopy(entry)
    kind, shared = type(entry), vars(entry)
    containers = {attribute: value for attribute, value in shared.items() if isinstance(value, (dict, set))}
    # Most are empty. To copy an empty `OrderedDict` takes longer than to make one.
    own = [(attribute, value.copy if value else type(value)) for attribute, value in containers.items()]

    def twin() -> nn.Module:
        made = kind.__new__(kind)
        vars(made).update(shared)
        vars(made).update({attribute: make() for attribute, make in own})
        return made

    return twin


@torch.no_grad()
def merge_adapters(model: nn.Module, adapters: Iterable[TaskAdapter]) -> nn.Module:
    """Merges adapters into the weights of a bare model, one after another, in place.

    The result is bit-equal to the model that later tasks were trained on, and to what PEFT merges: the same numbers
    are added in the same order on the CPU. Shards (FSDP 2) are gathered one matrix at a time, so that every process
    has to call this function.

    Args:
        model (`torch.nn.Module`):
            The bare model. Its modules and `requires_grad` flags stay.
        adapters (`Iterable[TaskAdapter]`):
            The adapters, in order. They must fit the model, see [`check_adapters`].

    Returns:
        `torch.nn.Module`: `model`.
    """
    for path, own in _by_layer(adapters).items():
        layer: Any = model.get_submodule(path)
        values = whole(layer.weight).to("cpu")  # accelerators round matrix products differently
        rooms: dict[torch.dtype, torch.Tensor] = {}  # a new matrix for each update would take longer than the product
        for adapter in own:
            factor_a, factor_b = adapter.pairs[path]
            room = rooms.setdefault(factor_b.dtype, factor_b.new_empty(0))
            update = torch.mm(factor_b, factor_a, out=room).mul_(adapter.scaling(path))
            values += update.T if isinstance(layer, Conv1D) else update
        if values.data_ptr() != local(layer.weight).data_ptr():
            set_whole(layer.weight, values)
    return model


def _by_layer(adapters: Iterable[TaskAdapter]) -> dict[str, list[TaskAdapter]]:
    """Returns the adapters that change each layer, in order."""
    found: dict[str, list[TaskAdapter]] = {}
    for adapter in adapters:
        for path in adapter.pairs:
            found.setdefault(path, []).append(adapter)
    return found


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Hides a deprecation warning that PEFT causes and users cannot avoid."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


class _Places:
    """The modules of a bare model, looked up once for many adapters."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self._norms: dict[str, float] = {}
        self._by_ending: dict[str, list[str]] = {}
        for path in filter(None, self.modules):
            parts = path.split(".")
            for start in range(len(parts)):
                self._by_ending.setdefault(".".join(parts[start:]), []).append(path)

    def norm(self, path: str) -> float:
        """The norm of the weights of a layer."""
        if path not in self._norms:
            module: Any = self.modules[path]
            self._norms[path] = _norm(dense(whole(module.weight)))
        return self._norms[path]

    def targeted(self, config: LoraConfig) -> set[str]:
        """Paths that a configuration targets, as PEFT's `check_target_module_exists` finds them one by one."""
        names = config.target_modules
        if isinstance(names, (list, set)):
            return {path for name in names for path in self._by_ending.get(name, ())}
        return {path for path in self.modules if path and check_target_module_exists(config, path)}


def _misfit(places: _Places, adapter: TaskAdapter) -> tuple[str, str] | None:
    """Finds a module or setting of an adapter that does not fit the model; returns its name and the problem."""
    for path, (factor_a, factor_b) in adapter.pairs.items():
        module = places.modules.get(path)
        if not isinstance(module, (nn.Linear, Conv1D)):
            return path, f"the model has no Linear layer {path!r}, but the adapter changes one"
        is_conv = isinstance(module, Conv1D)
        inputs, outputs = (module.nx, module.nf) if is_conv else (module.in_features, module.out_features)
        found, rank = (tuple(factor_a.shape), tuple(factor_b.shape)), len(factor_a)
        if found != ((rank, inputs), (outputs, rank)):
            expected = f"{(rank, inputs)} and {(outputs, rank)}"
            return path, f"for {path!r} its matrices have the shapes {found[0]} and {found[1]}; expected {expected}"
        if problem := _size_problem(places.norm(path), adapter, path):
            return path, problem
    paths, targets = adapter.pairs.keys(), places.targeted(adapter.config)
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
    limit, scaling = MAX_RELATIVE_UPDATE * weight or math.inf, abs(adapter.scaling(path))
    # ‖BA‖ ≤ ‖B‖ ‖A‖, which nearly always settles it. The norms are in the precision of the factors.
    norms = adapter.norms[path]
    if min(norms) > _TINY and scaling * norms[0] * norms[1] < limit / 2:
        return None
    factor_a, factor_b = (factor.double() for factor in adapter.pairs[path])
    # ‖BA‖² is the sum over BᵀB ∘ AAᵀ, which avoids BA itself, as large as the layer.
    square = ((factor_b.T @ factor_b) * (factor_a @ factor_a.T)).sum().clamp(min=0)
    update = scaling * float(square.sqrt())
    if math.isfinite(update) and update <= limit:
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
