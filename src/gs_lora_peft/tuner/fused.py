"""LoRA layers whose forward and backward pass over the activations once: base and low-rank weights in one product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import bare

_PRECISE = (torch.float32, torch.float64)


@contextmanager
def fused_lora(model: nn.Module, adapter: str) -> Iterator[None]:
    """Lets LoRA layers compute x (W + s·B·A)ᵀ in one product while they train, for the time of the block.

    Stock LoRA adds s · (x Aᵀ) Bᵀ to x Wᵀ: four more passes over the output of the layer, and two more in its backward
    pass. Here the sum of the weights, which is small beside the activations, is made anew at every call. It is not
    kept for the backward pass. Results differ from the stock layer by rounding.

    A layer does this with one active adapter that trains, in training mode, in float32 or float64, if the input has at
    least as many rows as columns. It does not depend on whether a graph is recorded, so that activation checkpoints
    compute the same twice. Otherwise, also under autocast, with dropout, DoRA and other variants, quantised or sharded
    weights, or hooks on its parts, it runs as PEFT wrote it.

    Args:
        model (`torch.nn.Module`):
            The model, wrapped or bare.
        adapter (`str`):
            The adapter that trains.

    Example:
        ```py
        >>> with fused_lora(model, "default"):
        ...     model(pixel_values=pixels).logits.sum().backward()
        ```
    """
    layers: list[Any] = [module for module in bare(model).modules() if _fits(module, adapter)]
    for layer in layers:
        # A method, which a deep copy of the model binds to the copy of the layer.
        vars(layer)["forward"] = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _fits(module: nn.Module, adapter: str) -> bool:
    """Whether a module is a plain LoRA layer on a Linear, with nothing else that has a say in its forward."""
    if type(module) is not Linear or adapter not in module.lora_A or "forward" in vars(module):
        return False
    parts = _parts(module, adapter)
    return (
        all(type(part) is nn.Linear and type(part.weight.data) is Tensor for part in parts)
        and all(part.bias is None for part in parts[1:])
        and adapter not in module.lora_variant
        and isinstance(module.lora_dropout[adapter], nn.Identity)
    )


def _parts(layer: Any, adapter: str) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    active = list(layer.active_adapters)
    if args or kwargs or len(active) != 1 or active[0] not in layer.lora_A or not _can_fuse(layer, active[0], x):
        return type(layer).forward(layer, x, *args, **kwargs)
    base, a, b = _parts(layer, active[0])
    return _FusedLinear.apply(x, base.weight, base.bias, a.weight, b.weight, layer.scaling[active[0]])


def _can_fuse(layer: Any, adapter: str, x: Tensor) -> bool:
    parts = _parts(layer, adapter)
    return (
        layer.training
        and any(part.weight.requires_grad for part in parts[1:])  # not an earlier task, which does not train
        and not layer.merged
        and not layer.disable_adapters
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and x.dtype in _PRECISE
        and all(part.weight.dtype == x.dtype for part in parts)
        and x.numel() >= x.shape[-1] ** 2
        and not torch.is_autocast_enabled(x.device.type)
        and not parts[0].weight.requires_grad
        and (parts[0].bias is None or not parts[0].bias.requires_grad)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


class _FusedLinear(torch.autograd.Function):
    """x (W + s·B·A)ᵀ + bias, with W and the bias frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return F.linear(x, torch.addmm(weight, b, a, alpha=scaling), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        of_output = grad_outputs[0].flatten(0, -2)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = (of_output @ torch.addmm(weight, b, a, alpha=ctx.scaling)).view_as(x)
        rows = x.flatten(0, -2)
        if ctx.needs_input_grad[3]:
            of_a = (of_output @ (ctx.scaling * b)).T @ rows
        if ctx.needs_input_grad[4]:
            of_b = of_output.T @ (rows @ (ctx.scaling * a).T)
        return of_x, None, None, of_a, of_b, None
