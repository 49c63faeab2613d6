"""The model as it was before a task, while the task's adapter trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


@contextmanager
def before_the_task(model: nn.Module, adapter: str) -> Iterator[None]:
    """
    Makes the model what it was before the task: `adapter` does nothing, other active adapters act, no dropout, no
    gradient. On leaving, every module is in the mode it was in.

    Args:
        model (`torch.nn.Module`): a `PeftModel`.
        adapter (`str`): the adapter that trains.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [module for module, _ in modes if isinstance(module, LoraLayer) and adapter in module.scaling]
    scalings = [layer.scaling[adapter] for layer in layers]
    # Not `disable_adapter()`, which would take earlier tasks off too.
    for layer in layers:
        layer.scaling[adapter] = 0.0
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[adapter] = scaling
        for module, mode in modes:
            module.training = mode
