"""The model as it was before a task, while the task's adapter trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


@contextmanager
def before_the_task(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """
    Makes the model what it was before the task: `adapter` does nothing, other active adapters act, no dropout, no
    gradient. On leaving, every module is in the mode it was in.

    Args:
        model (`torch.nn.Module`): a `PeftModel`, or a model without adapters.
        adapter (`str`, *optional*): the adapter that trains; `None` where there is none.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [module for module, _ in modes if isinstance(module, LoraLayer) and adapter in module.active_adapters]
    active = [layer._active_adapter for layer in layers]
    # Straight to the attribute: `set_adapter` would flip which adapters train, and `disable_adapter()` would take
    # earlier tasks off, too.
    for layer in layers:
        layer._active_adapter = [name for name in layer.active_adapters if name != adapter]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = names
        for module, mode in modes:
            module.training = mode
