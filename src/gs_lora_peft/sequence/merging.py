"""Putting adapters onto a bare model: for the time of a training, or merged into its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

TASKS_FOLDER = "tasks"


def task_folder(folder: str | os.PathLike, name: str) -> Path:
    """Where the files of one task are."""
    return Path(folder) / TASKS_FOLDER / name


@contextmanager
def fresh_adapter(model: nn.Module, config: PeftConfig, name: str) -> Iterator[PeftModel]:
    """A `PeftModel` around a bare model for the time of the block, with one new adapter that trains.

    Afterwards, also after an error, the model is bare again and in eval mode, its weights and `requires_grad` flags
    are what they were, and so are its buffers: running statistics that training changed belong to no adapter, so that
    they would be lost wherever the adapter is loaded.
    """
    buffers = {buffer_name: buffer.clone() for buffer_name, buffer in model.named_buffers()}
    with kept_flags(model):
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


@torch.no_grad()
def merge_tasks(
    model: nn.Module,
    folder: str | os.PathLike,
    names: Sequence[str],
    originals: MutableMapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Merges tasks into a bare model's weights, one after another, in place.

    The same files go through the same sums in the same order on the same kind of device wherever a sequence is
    rebuilt, so that the result is bit-equal to the model that later tasks were trained on.

    Args:
        model (`torch.nn.Module`): The model; it is bare before and after, and its `requires_grad` flags stay.
        folder (`str` or `os.PathLike`): The folder with the tasks.
        names (`Sequence[str]`): The tasks, in order.
        originals (`MutableMapping[str, torch.Tensor]`, *optional*): Gets a copy, on the CPU, of every weight that is
            about to change and is not in it yet, by module path.

    Returns:
        `torch.nn.Module`: `model`.
    """
    with kept_flags(model):
        for name in names:
            adapted = PeftModel.from_pretrained(
                model, task_folder(folder, name), adapter_name=name, low_cpu_mem_usage=True, torch_device="cpu"
            )
            devices: dict[str, torch.device] = {}
            for path, layer in _lora_layers(model):
                weight = layer.get_base_layer().weight
                if originals is not None and path not in originals:
                    originals[path] = weight.detach().to("cpu", copy=True)
                devices[path] = weight.device
                # Accelerators round matrix products in their own ways.
                layer.to("cpu")
            adapted.merge_and_unload()
            for path, device in devices.items():
                model.get_submodule(path).to(device)
    return model


class MergedModel:
    """A bare model with tasks merged into its weights, which can be taken out again exactly.

    The original weights of the layers that tasks change are kept on the CPU: subtracting what was added is not exact.

    Args:
        model (`torch.nn.Module`): The base model, changed in place; put into eval mode.
        folder (`str` or `os.PathLike`): The folder with the tasks.
        names (`Sequence[str]`): The tasks to merge, in order.
    """

    def __init__(self, model: nn.Module, folder: str | os.PathLike, names: Sequence[str]):
        self.bare = model.eval()
        self.folder = folder
        self._originals: dict[str, torch.Tensor] = {}
        self.merge(names)

    def merge(self, names: Sequence[str]) -> None:
        """Merges more tasks."""
        merge_tasks(self.bare, self.folder, names, self._originals)

    @torch.no_grad()
    def rebuild(self, names: Sequence[str]) -> None:
        """Starts again from the original weights and merges these tasks."""
        for path, weight in self._originals.items():
            module: Any = self.bare.get_submodule(path)
            module.weight.copy_(weight)
        self.merge(names)


@contextmanager
def kept_flags(model: nn.Module) -> Iterator[None]:
    """Gives every parameter its `requires_grad` back at the end of the block: PEFT freezes what it wraps."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))


def _lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer)]
