"""What an attacker's weights would be after a step of relearning, so that forgetting can hold there, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import bare
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
        InvalidInputError: If no matrix of the blocks can be changed, because they are quantised.
    """
    own = bare(model)
    matrices = {id(p) for path in blocks for p in own.get_submodule(path).parameters() if _can_change(p)}
    now = {name: p.detach() for name, p in model.named_parameters() if id(p) in matrices}
    if not now:
        expected = "blocks with frozen matrices of floating-point numbers"
        raise InvalidInputError("depth_blocks", list(blocks), expected, "Leave out `depth_radius`.")
    weights = {name: weight.clone().requires_grad_(True) for name, weight in now.items()}
    with torch.enable_grad():
        logits = with_weights(model, weights, lambda changed: logits_of(changed, dict(inputs)))
        loss = F.cross_entropy(logits.float(), inputs["labels"])
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: weight - radius * weight.norm() * gradient / gradient.norm().clamp(min=torch.finfo(weight.dtype).tiny)
        for (name, weight), gradient in zip(now.items(), gradients, strict=True)
        if gradient is not None
    }


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


def _can_change(parameter: nn.Parameter) -> bool:
    """Whether it is a frozen matrix: those of the adapter train, and vectors hold little."""
    return parameter.ndim > 1 and parameter.is_floating_point() and not parameter.requires_grad
