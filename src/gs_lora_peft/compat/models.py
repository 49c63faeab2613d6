"""Models as others wrap, quantise, tie and normalise them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InvalidInputError


def unwrapped(model: nn.Module) -> Any:
    """The model itself, where the trainer has wrapped it for several processes."""
    return extract_model_from_parallel(model)


def bare(model: nn.Module) -> Any:
    """The base model, out of its wrapper for several processes and its `PeftModel`."""
    own = unwrapped(model)
    return own.get_base_model() if isinstance(own, PeftModel) else own


def uncompiled(model: Any) -> Any:
    """The model inside of what `torch.compile` made; anything else as it is.

    Both share their modules, so that what is done to one acts in the other. The names of modules are those of the one
    inside: with the wrapper's they would fit no model that is not compiled.
    """
    return getattr(model, "_orig_mod", model)


@contextmanager
def reference_model(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """
    Makes the model what it was before the task: `adapter` does nothing, other active adapters act, no dropout, no
    gradient. On leaving, every module is in the mode it was in.

    Args:
        model (`torch.nn.Module`):
            A `PeftModel`, or a model without adapters.
        adapter (`str`, *optional*):
            The adapter that trains; `None` where there is none.
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


@contextmanager
def batch_norm_frozen(model: nn.Module) -> Iterator[None]:
    """
    Keeps every BatchNorm of the frozen base in eval mode, also through `model.train()`.

    A BatchNorm in training mode normalises by the batch and moves its running statistics at every forward. No adapter
    saves these: the base that the adapter was trained with would be another one than it is loaded on. RT-DETR and
    D-FINE, LeViT and MobileViT, for example, have such layers outside any frozen backbone.

    Layers with a parameter that trains are left alone. On leaving, every layer is in the mode that `model.train()` and
    `model.eval()` would have given it.

    Args:
        model (`torch.nn.Module`):
            The model to train, wrapped or bare.

    Example:
        ```py
        >>> with batch_norm_frozen(model):
        ...     trainer.train()
        ```
    """
    frozen = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
    ]
    handles = [module.register_forward_pre_hook(_into_eval) for module in frozen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in frozen:
            module.train(model.training)


def _into_eval(module: nn.Module, inputs: tuple) -> None:
    module.eval()


@contextmanager
def head_tying_hidden(model: nn.Module) -> Iterator[None]:
    """
    Lets stock PEFT wrap a detector with tied heads, on which it raises `NotImplementedError` otherwise.

    Deformable DETR, DAB-DETR, RT-DETRv2 and D-FINE set `tie_word_embeddings` for their heads. PEFT asks such a model
    for the input embeddings they would be tied to, and there are none. For the time of the block the configuration
    says that nothing is tied; the heads stay as they are. Models with input embeddings are left alone.

    Args:
        model (`torch.nn.Module`):
            The bare model.

    Example:
        ```py
        >>> with head_tying_hidden(detector):
        ...     model = PeftModel.from_pretrained(detector, "org/detector-forgotten")
        ```
    """
    if not has_tied_heads(model):
        yield
        return
    config: Any = model.config
    config.tie_word_embeddings = False
    try:
        yield
    finally:
        config.tie_word_embeddings = True


def has_tied_heads(model: nn.Module) -> bool:
    """Whether a bare model ties its heads to each other, so that stock PEFT has to be kept from asking for embeddings.

    See [`head_tying_hidden`].
    """
    config: Any = getattr(model, "config", None)
    return bool(getattr(config, "tie_word_embeddings", False)) and not _has_input_embeddings(model)


def _has_input_embeddings(model: Any) -> bool:
    try:
        return model.get_input_embeddings() is not None
    except (AttributeError, NotImplementedError):
        return False


_WEIGHTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def quantised_part(model: nn.Module) -> str | None:
    """Says what in a model is quantised, or `None` if nothing is.

    Args:
        model (`torch.nn.Module`):
            Any model. Looked at are what transformers notes (`is_quantized`, `config.quantization_config`), torch's
            own quantised layers, weights that are tensors of another make (torchao), and matrices that are not stored
            as floating-point numbers of 16 bits or more (bitsandbytes).
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
