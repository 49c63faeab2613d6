"""Finds quantised models by their structure, whichever library made them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import InvalidInputError

_WEIGHTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def quantised_part(model: nn.Module) -> str | None:
    """Says what in a model is quantised, or `None` if nothing is.

    Args:
        model (`torch.nn.Module`): Any model. Looked at are what transformers notes (`is_quantized`,
            `config.quantization_config`), torch's own quantised layers, weights that are tensors of another make
            (torchao), and matrices that are not stored as floating-point numbers of 16 bits or more (bitsandbytes).
    """
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False) is True:
        return f"the whole {type(model).__name__}"
    if getattr(getattr(model, "config", None), "quantization_config", None):
        return "config.quantization_config"
    for path, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            return f"{path!r} ({type(module).__name__})"
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and is_quantised(parameter):
                kind = type(parameter) if type(parameter) is not nn.Parameter else type(parameter.data)
                return f"{path}.{name} ({kind.__name__}, {parameter.dtype})"
    return None


def refuse_quantised(model: Any, name: str = "base_model") -> None:
    """Refuses a quantised model for what needs exact weights: fingerprints, and adapters that are merged.

    Raises:
        InvalidInputError: It is quantised.
    """
    if isinstance(model, nn.Module) and (part := quantised_part(model)):
        raise InvalidInputError(
            name,
            type(model).__name__,
            f"weights that are not quantised, but {part} is: merging would round them again, so that the result is "
            "no longer the model that was trained on",
            "Forget on the unquantised model, merge, and quantise the result.",
        )


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a matrix of weights is a tensor of another make, or not stored as floating-point numbers of 16 bits."""
    plain = weight.dtype in _WEIGHTS or weight.is_complex()
    if type(weight).__module__.startswith("bitsandbytes."):  # quantised once it is moved to its device
        return True
    return is_foreign(weight) or weight.is_quantized or (weight.dim() > 1 and not plain)


def is_foreign(tensor: torch.Tensor) -> bool:
    """Whether a tensor brings its own operators, as torchao's do. Sharded ones of torch itself hold plain numbers."""
    kinds = {type(tensor), type(tensor.data)} - {torch.Tensor, nn.Parameter}
    foreign = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    return any(kind.__torch_dispatch__ is not _PLAIN_DISPATCH for kind in foreign)
