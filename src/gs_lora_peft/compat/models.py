"""Models as PEFT, transformers, accelerate and torch wrap, mark, quantise and normalise them.

In this order: the model inside its wrappers, what the libraries note on it, which adapters act in it, its BatchNorms,
its tied heads, its quantised weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..errors import InvalidInputError

# What accelerate sets on a model that it prepares: a forward under autocast, and a mark that keeps it from wrapping
# the model again.
_PREPARED = "_is_accelerate_prepared"
_PREPARATION = ("forward", "_original_forward", _PREPARED)

_WEIGHTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def unwrapped(model: Any) -> Any:
    """Returns the model inside the wrappers of `DistributedDataParallel`, `DataParallel` and `torch.compile`.

    A wrapper and the model inside it share their modules, so that a change to one acts in the other. Paths of modules
    are those of the model inside.

    Args:
        model (`torch.nn.Module`):
            Any model. A `PeftModel` stays one. Anything that is not a module is returned as it is.
    """
    if not isinstance(model, nn.Module):
        return model
    while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
        model = inner
    return model


def base_of(model: nn.Module) -> Any:
    """Returns the model inside a `PeftModel` or a PEFT tuner, whose paths have no prefix `base_model.model.`.

    The adapters' layers stay in it. Other models are returned as they are, also those that [`unwrapped`] would open.

    Args:
        model (`torch.nn.Module`):
            Any model.
    """
    # `get_base_model()` asks for the active adapter first, which may have been deleted.
    tuner = model.base_model if isinstance(model, PeftModel) else model
    return tuner.model if isinstance(tuner, BaseTuner) else tuner


def bare(model: nn.Module) -> Any:
    """Returns the model itself, out of all wrappers ([`unwrapped`]) and out of PEFT ([`base_of`]), in any order.

    Args:
        model (`torch.nn.Module`):
            Any model.
    """
    while (inner := base_of(unwrapped(model))) is not model:
        model = inner
    return model


def loaded_from(model: nn.Module) -> tuple[str | None, str | None]:
    """Returns the name or path that a model was loaded by, and the commit of its Hub repository.

    Args:
        model (`torch.nn.Module`):
            A bare model or a `PeftModel`.

    Returns:
        `tuple[str | None, str | None]`: Each is `None` if it is unknown.
    """
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or getattr(model, "name_or_path", None)
    commit = getattr(config, "_commit_hash", None)
    return (name if isinstance(name, str) and name else None), commit or None


def fresh_model(model: PreTrainedModel) -> Any:
    """Returns a model of the same architecture with new weights, by its own initialisation and torch's generator.

    Args:
        model (`transformers.PreTrainedModel`):
            The model, which is not wrapped.
    """
    made = type(model)(copy.deepcopy(model.config))
    made.config._name_or_path = ""  # the weights are from nowhere
    return made


def undo_preparation(model: nn.Module) -> None:
    """Takes off what accelerate set on a model when it prepared it for evaluation alone.

    The mark would keep accelerate from wrapping the model in DDP for training: every process would train alone.

    Args:
        model (`torch.nn.Module`):
            The model, which is not wrapped.
    """
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    vars(model).pop(_PREPARED, None)


@contextmanager
def preparation_undone(model: nn.Module) -> Iterator[None]:
    """Gives a model its own forward and marks back at the end of the block, in which accelerate prepares it.

    Args:
        model (`torch.nn.Module`):
            The model.
    """
    own = {name: vars(model)[name] for name in _PREPARATION if name in vars(model)}
    try:
        yield
    finally:
        for name in _PREPARATION:
            vars(model).pop(name, None)
        vars(model).update(own)


def activate(layer: LoraLayer, names: Sequence[str]) -> None:
    """Lets these adapters of one layer act, and no others. Their `requires_grad` flags stay.

    PEFT's `set_adapter` would also choose which adapters train.

    Args:
        layer (`peft.tuners.lora.LoraLayer`):
            The layer.
        names (`Sequence[str]`):
            Names of adapters. The layer keeps this very object.
    """
    layer._active_adapter = names  # type: ignore[assignment]


def adapt_layer(model: PeftModel, path: str, config: LoraConfig, name: str) -> None:
    """Puts one more adapter on one layer, without PEFT's walk through the whole model.

    Args:
        model (`peft.PeftModel`):
            The model.
        path (`str`):
            Path of the layer in the base model.
        config (`peft.LoraConfig`):
            The adapter's configuration.
        name (`str`):
            The adapter's name.
    """
    tuner: Any = model.base_model
    parent_path, _, child = path.rpartition(".")
    parent = tuner.model.get_submodule(parent_path)
    tuner._create_and_replace(config, name, getattr(parent, child), child, parent, current_key=path)


def has_custom_layers(config: LoraConfig) -> bool:
    """Whether a configuration names LoRA layers of the user's own (PEFT's `_register_custom_module`)."""
    return bool(config._custom_modules)


@contextmanager
def reference_model(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Makes the model what it was before the task, for the time of the block.

    The adapter does nothing and other active adapters act. There is no dropout and no gradient. On leaving, every
    module is in the mode it was in.

    Args:
        model (`torch.nn.Module`):
            A `PeftModel`, or a model without adapters.
        adapter (`str`, *optional*):
            The adapter that trains; `None` if there is none.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [module for module, _ in modes if isinstance(module, LoraLayer) and adapter in module.active_adapters]
    active = [layer._active_adapter for layer in layers]
    # `disable_adapter()` would take earlier tasks off, too.
    for layer in layers:
        activate(layer, [name for name in layer.active_adapters if name != adapter])
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
    """Keeps every BatchNorm of the frozen base in eval mode, also through `model.train()`.

    A BatchNorm in training mode normalises by the batch and moves its running statistics at every forward. No adapter
    saves these, so that the adapter would be loaded on another base than it was trained with. RT-DETR, D-FINE, LeViT
    and MobileViT, for example, have such layers outside any frozen backbone.

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
    """Lets stock PEFT wrap a detector with tied heads; without this, PEFT raises `NotImplementedError`.

    Deformable DETR, DAB-DETR, RT-DETRv2 and D-FINE set `tie_word_embeddings` for their heads. PEFT takes this for
    heads that are tied to input embeddings, and asks the model for embeddings that it does not have. During the block
    the configuration says that nothing is tied; the heads stay as they are. Models with input embeddings are left
    alone.

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
    """Whether a bare model ties its heads to each other and has no input embeddings, see [`head_tying_hidden`]."""
    config: Any = getattr(model, "config", None)
    return bool(getattr(config, "tie_word_embeddings", False)) and not has_input_embeddings(model)


def has_input_embeddings(model: Any) -> bool:
    """Whether a bare model has input embeddings that transformers finds."""
    try:
        return model.get_input_embeddings() is not None
    except (AttributeError, NotImplementedError):
        return False


def refuse_quantised(model: Any, name: str = "base_model") -> None:
    """Refuses a quantised model where exact weights are needed: for fingerprints, and for adapters that are merged.

    Args:
        model (`torch.nn.Module`):
            The model. Anything that is not a module is accepted.
        name (`str`, *optional*, defaults to `"base_model"`):
            Name of the argument, for the error.

    Raises:
        InvalidInputError: If the model is quantised.
    """
    if isinstance(model, nn.Module) and (part := quantised_part(model)):
        raise InvalidInputError(
            name,
            type(model).__name__,
            f"weights that are not quantised, but {part} is: merging would round them again, and the result would not "
            "be the model that was trained on",
            "Forget on the unquantised model, merge, and quantise the result.",
        )


def quantised_part(model: nn.Module) -> str | None:
    """Says which part of a model is quantised, or returns `None` if nothing is.

    Looks at transformers' notes (`hf_quantizer`, `is_quantized`, `config.quantization_config`), at torch's own
    quantised layers, and at every weight (see [`is_quantised`]).

    Args:
        model (`torch.nn.Module`):
            Any model.
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


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is quantised.

    It is if another library brings its operators (torchao, see [`is_foreign`]), or if it is a matrix that is not
    stored as floating-point numbers of 16 bits or more (bitsandbytes).
    """
    plain = weight.dtype in _WEIGHTS or weight.is_complex()
    if type(weight).__module__.startswith("bitsandbytes."):  # quantised only once it is moved to its device
        return True
    return is_foreign(weight) or weight.is_quantized or (weight.dim() > 1 and not plain)


def is_foreign(tensor: torch.Tensor) -> bool:
    """Whether a tensor brings its own operators, as torchao's do. torch's own sharded tensors hold plain numbers."""
    kinds = {type(tensor), type(tensor.data)} - {torch.Tensor, nn.Parameter}
    foreign = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    return any(kind.__torch_dispatch__ is not _PLAIN_DISPATCH for kind in foreign)
