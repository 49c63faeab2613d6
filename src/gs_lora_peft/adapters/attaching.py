"""Putting adapters onto a bare model: for the time of a training, or merged into its weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from ..compat import adapt_layer, head_tying_hidden
from ..ledger import ForgettingLedger
from .task_adapter import TaskAdapter, check_adapters, new_adapter, read_adapters


@contextmanager
def fresh_adapter(model: nn.Module, config: PeftConfig, name: str) -> Iterator[PeftModel]:
    """A `PeftModel` around a bare model for the time of the block, with one new adapter that trains.

    Afterwards, also after an error, the model is bare again and in eval mode, its weights and `requires_grad` flags
    are what they were, and so are its buffers: running statistics that training changed belong to no adapter, so that
    they would be lost wherever the adapter is loaded.
    """
    buffers = {buffer_name: buffer.clone() for buffer_name, buffer in model.named_buffers()}
    with kept_flags(model):
        with _without_deprecation():
            peft_model = get_peft_model(model, config, adapter_name=name)
        try:
            yield peft_model
        finally:
            peft_model.unload()
            model.eval()
            for buffer_name, buffer in model.named_buffers():
                before = buffers.get(buffer_name)
                if before is not None and before.shape == buffer.shape:
                    buffer.copy_(before)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Hides that a `PeftModel` reads an attribute which transformers deprecates: it is not the user's to change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def attach_adapters(model: nn.Module, adapters: Sequence[TaskAdapter]) -> PeftModel:
    """Puts adapters onto a bare model, all active and frozen.

    The result is what `PeftModel.from_pretrained` and `load_adapter` make of the files. They walk through the whole
    model several times for each adapter, those attached before included, so that a hundred take a quarter of a minute;
    here only the layers that an adapter changes are visited.

    Args:
        model (`torch.nn.Module`):
            The model, changed in place.
        adapters (`Sequence[TaskAdapter]`):
            At least one; they fit the model (see [`check_adapters`]).
    """
    first = adapters[0]
    empty = LoraConfig(target_modules=DUMMY_TARGET_MODULES, task_type=first.config.task_type, inference_mode=True)
    peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(empty.task_type), PeftModel)
    with head_tying_hidden(model), _without_deprecation():
        peft_model = peft_class(model, empty, adapter_name=first.name, low_cpu_mem_usage=True)
    tuner: Any = peft_model.base_model
    likes: dict[tuple, str] = {}
    with init_empty_weights():  # the weights come later; random numbers are not drawn first
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
def merge_adapters(
    model: nn.Module, adapters: Iterable[TaskAdapter], originals: MutableMapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """Merges adapters into a bare model's weights, one after another, in place.

    The same tensors go through the same sums in the same order on the same kind of device wherever a sequence is
    rebuilt, so that the result is bit-equal to the model that later tasks were trained on.

    Args:
        model (`torch.nn.Module`):
            The model; it is bare before and after, and its `requires_grad` flags stay.
        adapters (`Iterable[TaskAdapter]`):
            The adapters, in order; they fit the model (see [`check_adapters`]).
        originals (`MutableMapping[str, torch.Tensor]`, *optional*):
            Gets a copy, on the CPU, of every weight that is about to change and is not in it yet, by module path.

    Returns:
        `torch.nn.Module`: `model`.
    """
    with kept_flags(model):
        for adapter in adapters:
            layers: dict[str, Any] = {path: model.get_submodule(path) for path in adapter.pairs}
            devices = {path: layer.weight.device for path, layer in layers.items()}
            for path, layer in layers.items():
                if originals is not None and path not in originals:
                    originals[path] = layer.weight.detach().to("cpu", copy=True)
                layer.to("cpu")  # accelerators round matrix products in their own ways
            try:
                attach_adapters(model, [adapter]).merge_and_unload()
            except BaseException:  # memory ran out, or the user stopped it: no half-wrapped model is left behind
                for path, layer in layers.items():
                    parent, _, name = path.rpartition(".")
                    setattr(model.get_submodule(parent), name, layer)
                vars(model).pop("peft_config", None)
                raise
            finally:
                for path, device in devices.items():
                    layers[path].to(device)
    return model


class MergedModel:
    """A bare model with tasks merged into its weights, which can be taken out again exactly.

    The original weights of the layers that tasks change are kept on the CPU: subtracting what was added is not exact.
    Adapters come from [`read_adapters`] and fit the model before any weight changes.

    Args:
        model (`torch.nn.Module`):
            The base model, changed in place; put into eval mode.
        ledger ([`ForgettingLedger`]):
            The run. Its tasks in effect are merged.
    """

    def __init__(self, model: nn.Module, ledger: ForgettingLedger):
        self.bare = model.eval()
        self.ledger = ledger
        self._originals: dict[str, torch.Tensor] = {}
        self._before: list[dict[str, torch.Tensor]] = []  # changed weights, as each block that is open found them
        self.merge([entry.name for entry in ledger.active_tasks])

    def merge(self, names: Sequence[str]) -> None:
        """Merges more tasks, all of which are in the ledger.

        Raises:
            LedgerError: A file is not what the ledger says, or an adapter does not fit. The model is as it was.
        """
        self._merge(read_adapters(self.ledger, list(names)))

    def merge_new(self, name: str) -> dict[str, str]:
        """Merges a task that is about to be added to the ledger.

        Returns:
            The SHA-256 of its files, as the ledger has them: of the very bytes that were merged.

        Raises:
            LedgerError, OSError, ValueError: As [`new_adapter`], or it does not fit. The model is as it was.
        """
        adapter, files = new_adapter(self.ledger, name)
        self._merge([adapter])
        return files

    def rebuild(self, names: Sequence[str]) -> None:
        """Starts again from the original weights and merges these tasks, as [`~MergedModel.merge`]."""
        adapters = read_adapters(self.ledger, list(names))
        check_adapters(self.bare, adapters)
        self._put(self._originals)
        self._merge(adapters)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Puts the weights back, bit for bit, if the block fails, without a look at files: they may be the reason."""
        with self._remembered() as before:
            try:
                yield
            except BaseException:
                self._put(before)
                raise

    @contextmanager
    def without_tasks(self) -> Iterator[None]:
        """The base model for the time of the block; afterwards the weights are what they were."""
        with self._remembered() as before:
            try:
                self._put(self._originals)
                yield
            finally:
                self._put(before)

    def _merge(self, adapters: Sequence[TaskAdapter]) -> None:
        check_adapters(self.bare, adapters)
        self._note(path for adapter in adapters for path in adapter.pairs)
        merge_adapters(self.bare, adapters, self._originals)

    @contextmanager
    def _remembered(self) -> Iterator[dict[str, torch.Tensor]]:
        """Keeps a copy, on the CPU, of every weight that the block changes."""
        before: dict[str, torch.Tensor] = {}
        self._before.append(before)
        try:
            yield before
        finally:
            self._before.pop()

    def _note(self, paths: Iterable[str]) -> None:
        for path in paths:
            for before in self._before:
                if path not in before:
                    before[path] = _weight(self.bare, path).to("cpu", copy=True)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._note(weights)
        for path, weight in weights.items():
            _weight(self.bare, path).copy_(weight)


def _weight(model: nn.Module, path: str) -> torch.Tensor:
    layer: Any = model.get_submodule(path)
    return layer.weight.detach()


@contextmanager
def kept_flags(model: nn.Module) -> Iterator[None]:
    """Gives every parameter its `requires_grad` back at the end of the block: PEFT freezes what it wraps."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))


def _copy_adapter(layer: Any, like: str, name: str) -> None:
    """Gives a layer one more adapter, made like one that it has.

    PEFT makes one in a time that grows with the number of adapters the layer has. What belongs to an adapter is listed
    by PEFT itself, which deletes it by these lists.
    """
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
        entries = getattr(layer, attribute)
        if like in entries:
            entries[name] = _twin(entries[like])


def _twin(entry: Any) -> Any:
    """A copy of what belongs to one adapter: a number, or a layer whose weights are about to be replaced.

    A layer without layers in it gets containers of its own, with what is in them shared; `copy.deepcopy` does the same
    twenty times slower, which is half the time of loading a hundred adapters.
    """
    if not isinstance(entry, nn.Module) or any(True for _ in entry.children()):
        return copy.deepcopy(entry)
    twin = copy.copy(entry)
    for attribute, value in vars(twin).items():
        if isinstance(value, dict | set):
            vars(twin)[attribute] = value.copy()
    return twin
