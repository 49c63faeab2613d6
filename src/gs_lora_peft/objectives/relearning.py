"""What an attacker's weights would be after a step of relearning, so that forgetting can hold there, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import bare, is_quantised
from ..errors import InvalidInputError
from .heads import logits_of

Result = TypeVar("Result")


class _Call(nn.Module):
    """Calls a function of a model in its forward, because `functional_call` takes a module."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Any]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self) -> Any:
        return self.function(self.model)


def relearned_weights(
    model: nn.Module, blocks: Sequence[str], inputs: Mapping[str, Any], radius: float
) -> dict[str, Tensor]:
    r"""The weights of the blocks after one step of fine-tuning towards the true labels.

    Each frozen matrix W of the blocks, of every layer and not only those that are adapted, takes a step along its
    gradient g of the cross-entropy, of a size that is relative to its own:

    $$W' = W - \rho \, \lVert W \rVert \, \frac{g}{\lVert g \rVert}$$

    Args:
        model (`torch.nn.Module`):
            The model that trains, without a wrapper for several processes.
        blocks (`Sequence[str]`):
            Paths of the blocks in the bare model.
        inputs (`Mapping`):
            Samples of the classes to forget with their `labels`, int64, shape `(B,)`.
        radius (`float`):
            ρ.

    Returns:
        `dict[str, torch.Tensor]`: New values of the matrices that matter, by their names in `model`; no gradient.

    Raises:
        InvalidInputError: If the blocks are quantised, or none of their matrices gets a gradient.
    """
    own = bare(model)
    matrices = [p for path in blocks for p in own.get_submodule(path).parameters() if p.ndim > 1]
    if any(is_quantised(matrix) for matrix in matrices):
        raise _no_radius(radius, "a base model that is not quantised, whose matrices can take a step")
    changeable = {id(p) for p in matrices if not p.requires_grad}
    now = {name: p.detach() for name, p in model.named_parameters() if id(p) in changeable}
    weights = {name: weight.clone().requires_grad_(True) for name, weight in now.items()}
    with torch.enable_grad():
        logits = with_weights(model, weights, lambda changed: logits_of(changed, dict(inputs)))
        loss = F.cross_entropy(logits.float(), inputs["labels"])
        if not loss.requires_grad:
            raise _no_radius(radius, "blocks whose frozen matrices get a gradient")
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise _no_radius(radius, "blocks whose frozen matrices get a gradient")
    return {
        name: weight - radius * weight.norm() * _unit(gradient)
        for (name, weight), gradient in zip(now.items(), gradients, strict=True)
        if gradient is not None
    }


def _unit(gradient: Tensor) -> Tensor:
    """The gradient with norm 1; 0 if it is. That of a sure answer is so small that its squares would underflow."""
    largest = gradient.abs().max()
    scaled = torch.where(largest > 0, gradient / largest, gradient)
    return scaled / scaled.norm().clamp(min=1.0)


def _no_radius(radius: float, expected: str) -> InvalidInputError:
    fix = "Leave it out: it does not work with FSDP, quantised bases and activation checkpoints."
    return InvalidInputError("depth_radius", radius, expected, fix)


def with_weights(model: nn.Module, weights: Mapping[str, Tensor], function: Callable[[nn.Module], Result]) -> Result:
    """Calls a function of the model while some of its parameters have other values.

    Args:
        model (`torch.nn.Module`):
            A model, without a wrapper for several processes. Its parameters are what they were afterwards.
        weights (`Mapping[str, torch.Tensor]`):
            Values by the names of parameters. Gradients reach them, and all other parameters.
        function (`Callable`):
            Gets the model.
    """
    values = {f"model.{name}": value for name, value in weights.items()}
    # Tied parameters change together: an attacker trains them as one.
    return torch.func.functional_call(_Call(model, function), values, ())
