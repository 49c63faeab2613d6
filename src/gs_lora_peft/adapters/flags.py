"""The `requires_grad` flags of a model that a training borrows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_flags(model: nn.Module) -> Iterator[None]:
    """Restores the `requires_grad` flags at the end of the block: PEFT and methods freeze the models they get."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))
