"""One half of a joint batch, and the model before the task on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...training import Method


def half_of(inputs: dict[str, Any], *, forget: bool) -> dict[str, Any]:
    """Returns the samples to forget of a joint batch, or those to keep.

    Args:
        inputs (`dict`):
            The joint batch: B samples to keep, then B samples to forget, with their `labels` of shape `(2·B,)`.
        forget (`bool`):
            Which half.

    Returns:
        `dict`: The same names. Values that do not belong to single samples stay as they are.
    """
    size = len(inputs["labels"])
    rows = slice(size // 2, None) if forget else slice(size // 2)
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in inputs.items()
    }


@contextmanager
def before_task(method: Method) -> Iterator[None]:
    """Makes the model the one before the task, also under autocast.

    Autocast keeps its casts by the identity of a weight. The weight stays the same object when its data is exchanged,
    so that a kept cast would be that of the other model.

    Args:
        method ([`Method`]):
            The method that trains.
    """
    torch.clear_autocast_cache()
    try:
        with method.trainer.trained.before():
            yield
    finally:
        torch.clear_autocast_cache()


def teacher_logits(method: Method, model: nn.Module, inputs: dict[str, Any], *, forget: bool) -> Tensor:
    """Returns the logits `(B, C)` in float32 of the model before the task for one half, by one more forward of it.

    Args:
        method ([`Method`]):
            The method that trains.
        model (`torch.nn.Module`):
            The model as the trainer calls it.
        inputs (`dict`):
            The joint batch.
        forget (`bool`):
            Which half.
    """
    with before_task(method):
        return method.earlier_logits(model, half_of(inputs, forget=forget)).float()
