"""The GS-LoRA tuner: PEFT's LoRA, placed by the structure of the model, and careful about which adapter trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from .blocks import find_attention_blocks, find_ffn_blocks
from .config import GSLoraConfig

_BLOCK_FINDERS = {"ffn": find_ffn_blocks, "attention": find_attention_blocks}


class GSLoraModel(LoraModel):
    """
    Puts LoRA matrices on the feed-forward Linears of every Transformer block (GS-LoRA, https://arxiv.org/abs/2403.11530).

    Made by `get_peft_model(model, GSLoraConfig(...))`; all of `LoraModel` stays available. It differs in two points:

    - `target_modules="ffn"` and `"attention"` are answered by [`find_ffn_blocks`] and [`find_attention_blocks`].
    - Which adapter trains changes only when one adapter is chosen by name (`set_adapter("name")`). Entering and leaving
      `disable_adapter()`, deleting or adding an adapter, and activating several adapters at once keep every
      `requires_grad` flag as it was. (Plain LoRA makes all active adapters trainable in these cases, so that a frozen
      earlier task would silently train along.)

    Args:
        model (`torch.nn.Module`): the model to adapt, in place.
        config ([`GSLoraConfig`]): the configuration.
        adapter_name (`str`): name of the adapter; no dots. Defaults to `"default"`.
        low_cpu_mem_usage (`bool`): create the LoRA matrices on the meta device. Defaults to `False`.

    Raises:
        NoFFNFoundError: if the model has no feed-forward Linear to put LoRA on.
        ValueError: if the adapter's name has a dot, or a block pattern leaves no block.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if "." in adapter_name:
            raise ValueError(
                f"an adapter's name becomes part of parameter names and must not contain dots, got {adapter_name!r}. "
                f"Use {adapter_name.replace('.', '_')!r}."
            )
        self._resolve_targets(model, self.peft_config[adapter_name])
        others = {name for name in self.peft_config if name != adapter_name}
        with self._kept_flags(others):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        _disable_encoder_fast_path(model)

    @staticmethod
    def _resolve_targets(model: nn.Module, config: GSLoraConfig) -> None:
        # A plain LoraConfig can be handed in through PeftModel.add_adapter by transformers' native integration.
        if not getattr(config, "is_structural", False):
            return
        blocks = _BLOCK_FINDERS[config.target_modules](
            model, block_pattern=config.block_pattern, exclude_blocks=config.exclude_blocks
        )
        config._resolved_targets = frozenset(path for paths in blocks.values() for path in paths)

    @staticmethod
    def _check_target_module_exists(peft_config: GSLoraConfig, key: str):
        targets = getattr(peft_config, "_resolved_targets", None)
        if targets is None or not peft_config.is_structural:
            return check_target_module_exists(peft_config, key)
        if key not in targets:
            return False
        if peft_config.exclude_modules:
            # PEFT's own reading of `exclude_modules`; a target of ".*" leaves only the exclusion to be decided.
            return check_target_module_exists(_OnlyExclusion(peft_config), key)
        return True

    def _get_module_names_tied_with_embedding(self):
        # Detection models with tied heads (Deformable DETR, RT-DETRv2, D-FINE, …) have no input embeddings to ask for.
        # None of the Linears that GS-LoRA adapts is tied to an embedding, so there is nothing to tie either.
        try:
            return super()._get_module_names_tied_with_embedding()
        except NotImplementedError:
            return []

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        several = not isinstance(adapter_name, str) and len(adapter_name) > 1
        if not several:
            super().set_adapter(adapter_name, inference_mode=inference_mode)
            return
        with self._kept_flags(set(self.peft_config)):
            super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        with self._kept_flags(set(self.peft_config) - {adapter_name}):
            super().delete_adapter(adapter_name)

    def disable_adapter_layers(self) -> None:
        if getattr(self, "_flags_while_disabled", None) is None:
            self._flags_while_disabled = dict(self._flags(set(self.peft_config)))
        super().disable_adapter_layers()

    def enable_adapter_layers(self) -> None:
        super().enable_adapter_layers()
        self._restore(getattr(self, "_flags_while_disabled", None) or {})
        self._flags_while_disabled = None

    def _flags(self, adapter_names: set[str]) -> Iterator[tuple[tuple[str, str, str], bool]]:
        """(module path, matrix kind, adapter) → requires_grad, by name so that a deep copy can use it too."""
        for path, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                for kind in ("lora_A", "lora_B"):
                    for adapter, linear in getattr(layer, kind).items():
                        if adapter in adapter_names:
                            yield (path, kind, adapter), linear.weight.requires_grad

    def _restore(self, flags: dict[tuple[str, str, str], bool]) -> None:
        for (path, kind, adapter), requires_grad in flags.items():
            matrices = getattr(self.model.get_submodule(path), kind)
            if adapter in matrices:
                matrices[adapter].weight.requires_grad_(requires_grad)

    @contextmanager
    def _kept_flags(self, adapter_names: set[str]) -> Iterator[None]:
        flags = dict(self._flags(adapter_names))
        yield
        self._restore(flags)


class _OnlyExclusion:
    """A view of a configuration that matches every module, so that only `exclude_modules` decides."""

    target_modules = ".*"
    target_parameters = None
    modules_to_save = None

    def __init__(self, config: GSLoraConfig):
        self.exclude_modules = config.exclude_modules


def _disable_encoder_fast_path(model: nn.Module) -> None:
    """Make `nn.TransformerEncoderLayer` call its Linears in eval mode too.

    Its fused inference path reads `linear1.weight` instead of calling the module, so that LoRA would work in training
    and silently do nothing in evaluation. The flag only says "no fused activation"; the activation itself is unchanged.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, LoraLayer) for m in module.modules()):
            module.activation_relu_or_gelu = 0
