"""Quantised weights whose numbers can be read: tensors that tell which plain tensors they consist of (torchao)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from .models import is_foreign, is_quantised, quantised_part, refuse_quantised

PEFT_PREFIX = "base_model.model."  # of the base model's keys in the state dict of a `PeftModel`


def inner_tensors(tensor: Tensor) -> dict[str, Tensor] | None:
    """Returns the plain tensors that a tensor with operators of its own consists of, by name.

    Args:
        tensor (`torch.Tensor`):
            Any tensor.

    Returns:
        `dict[str, torch.Tensor]` or `None`: `None` if it is plain or does not tell.
    """
    foreign: Any = tensor
    if not is_foreign(tensor) or not hasattr(foreign, "__tensor_flatten__"):
        return None
    found: dict[str, Tensor] = {}
    for name in foreign.__tensor_flatten__()[0]:
        part = getattr(foreign, name)
        inner = inner_tensors(part) if is_foreign(part) else {"": part}
        if inner is None:
            return None
        found |= {f"{name}.{below}".rstrip("."): own for below, own in inner.items()}
    return found


def dense(tensor: Any) -> Tensor:
    """Returns the values of a tensor as plain numbers: of a quantised one those that it stands for."""
    return tensor.dequantize() if is_foreign(tensor) else tensor


def base_state(model: nn.Module) -> dict[str, Any]:
    """Returns the state dict of a bare model, also of one that refuses it because tasks are beside its weights.

    Args:
        model (`torch.nn.Module`):
            The bare model. Its layers may hold adapters of PEFT.
    """
    return {key.removeprefix(PEFT_PREFIX): value for key, value in model.state_dict(prefix=PEFT_PREFIX).items()}


def refuse_unreadable(model: nn.Module, name: str = "base_model") -> None:
    """Refuses a quantised model unless adapters can stay beside its weights, and its weights have a fingerprint.

    These are models with weights of torchao in 8 bits.

    Args:
        model (`torch.nn.Module`):
            The bare model.
        name (`str`, *optional*, defaults to `"base_model"`):
            Name of the argument, for the error.

    Raises:
        InvalidInputError: If the model is quantised in another way.
    """
    if quantised_part(model) is None:
        return
    weights: list[Any] = [
        module.weight for module in model.modules() if is_quantised_parameter(getattr(module, "weight", None))
    ]
    if not weights or any(inner_tensors(weight) is None for weight in weights):
        refuse_quantised(model, name)
    for weight in weights:
        if "Int4" in type(weight).__name__:
            expected = "weights of 8 bits, or not quantised: PEFT does not train an adapter on those of 4 bits"
            fix = "Quantise with torchao.quantization.Int8WeightOnlyConfig()."
            raise InvalidInputError(name, type(weight).__name__, expected, fix)


@contextmanager
def quantisation_unsaid(model: Any) -> Iterator[None]:
    """Lets a Trainer evaluate a model that transformers has quantised, which it takes for one to train.

    Args:
        model (`torch.nn.Module`):
            The bare model. During the block its `is_quantized` is false.
    """
    said = getattr(model, "is_quantized", None)
    if not isinstance(said, bool):
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = said


def is_quantised_parameter(weight: Any) -> bool:
    """Whether the `weight` of a module is a quantised parameter; in some libraries it is a method."""
    return isinstance(weight, torch.Tensor) and is_quantised(weight)
