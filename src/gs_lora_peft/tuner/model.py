"""The GS-LoRA tuner: PEFT's LoRA, placed by the structure of the model, with stable `requires_grad` flags."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from peft import LoraModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..compat import has_custom_layers
from ..errors import InvalidInputError
from .blocks import find_attention_blocks, find_ffn_blocks, warn_of_fused_experts
from .config import GSLoraConfig, check_plain_lora
from .targets import exact_targets, resolved

_BLOCK_FINDERS = {"ffn": find_ffn_blocks, "attention": find_attention_blocks}
Flags = dict[tuple[str, str, str], bool]


class GSLoraModel(LoraModel):
    """LoRA on the feed-forward Linears of every Transformer block (GS-LoRA, https://arxiv.org/abs/2403.11530).

    Created by `get_peft_model(model, GSLoraConfig(...))`. It is a `LoraModel` that differs in these points:

    - [`find_ffn_blocks`] and [`find_attention_blocks`] resolve `target_modules="ffn"` and `"attention"`.
    - The adapter that trains changes only when one adapter is chosen by name (`set_adapter("name")`), or with
      `set_requires_grad` and `load_adapter(is_trainable=True)`. All `requires_grad` flags stay when
      `disable_adapter()` is entered and left, when an adapter is added or deleted, and when several adapters are
      activated. (Plain LoRA makes all active adapters trainable then, so that a frozen earlier task would silently
      train too.)
    - Only Linear layers are adapted, and `nn.TransformerEncoder` leaves its fused inference path, which ignores LoRA.
    - `add_weighted_adapter` accepts adapters on different modules.

    Limits of PEFT (docs/peft.md has more): `PeftModel.set_adapter` takes one name; activate several with
    `model.base_model.set_adapter(["a", "b"])`. If the adapter in `PeftModel.active_adapter` is deleted while several
    others are active, `PeftModel` keeps its name, and `disable_adapter()` raises `KeyError`; choose one with
    `model.set_adapter("name")`. A model changed by transformers' own `add_adapter`, or by `inject_adapter_in_model`,
    has no tuner, so that transformers' functions decide which adapter trains.

    Args:
        model (`torch.nn.Module`):
            The model to adapt, in place.
        config ([`GSLoraConfig`]):
            The configuration.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Name of the adapter, without dots.
        low_cpu_mem_usage (`bool`, *optional*, defaults to `False`):
            Whether the LoRA matrices are created on the meta device.

    Raises:
        NoFFNFoundError: If the model has no feed-forward Linear that can be found.
        InvalidInputError: If the adapter's name has a dot, a block pattern leaves no block, or a target is not Linear.
    """

    # The `requires_grad` flags from before the adapters were disabled; `None` while they are enabled.
    _flags_while_disabled: Flags | None = None
    # (module path, attribute) → its value before `nn.TransformerEncoder` left its fused path.
    _fast_path: dict[tuple[str, str], Any] | None = None

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if "." in adapter_name:
            expected = "a name without dots, because it becomes part of parameter names"
            raise InvalidInputError("adapter_name", adapter_name, expected, f"Use {adapter_name.replace('.', '_')!r}.")
        config: Any = self.peft_config[adapter_name]
        check_plain_lora(vars(config))  # again: PEFT sets some options later than the configuration's own check
        keyword = self._resolve_targets(model, config)
        self._check_targets(model, config)
        if keyword != "ffn" and config.target_modules != DUMMY_TARGET_MODULES:  # for "ffn", the search has warned
            warn_of_fused_experts(model)
        others = {name for name in self.peft_config if name != adapter_name}
        flags_while_disabled = self._flags_while_disabled
        known_paths = [path for path, _ in model.named_modules()]
        absent = [] if keyword is not None else _absent(config.target_modules, known_paths)
        with self._kept_flags(others):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            self._take_leftovers_off(model, adapter_name, config)
        if not self._paths_of(adapter_name) and not _may_adapt_nothing(config):
            # PEFT checks this only for the first adapter.
            raise InvalidInputError(
                "target_modules",
                config.target_modules,
                "names of modules that the base model has",
                "Check them against the names in `model.named_modules()`.",
            )
        if absent:
            warnings.warn(
                f"the model has no modules called {absent}, which `target_modules` lists. Only the others are "
                "adapted. Check the names against those in `model.named_modules()`.",
                stacklevel=2,
            )
        if keyword is not None:
            # The rest of PEFT reads names. Before its search for modules it would shorten a list of them.
            paths = sorted(path for path in known_paths if self._check_target_module_exists(config, path))
            config.target_modules = resolved(exact_targets(paths, known_paths), keyword)
        self._flags_while_disabled = flags_while_disabled
        self._leave_encoder_fast_path(model)

    def _take_leftovers_off(self, model: nn.Module, adapter_name: str, config: Any) -> None:
        """Removes matrices of an earlier adapter with the same name from modules that are not targets.

        A cell of a notebook that runs again with other settings leaves such matrices. They would train and act beside
        the new ones, and be saved with them.
        """
        for path, layer in list(model.named_modules()):
            if not isinstance(layer, LoraLayer) or adapter_name not in layer.lora_A:
                continue
            if not self._check_target_module_exists(config, path) and adapter_name not in layer.merged_adapters:
                layer.set_adapter([])  # PEFT would activate another adapter of the layer
                layer.delete_adapter(adapter_name)
                layer.set_adapter(self.active_adapters)

    @staticmethod
    def _resolve_targets(model: nn.Module, config: Any) -> str | None:
        """Resolves a structural target for this model, and returns its keyword."""
        # transformers' native integration can pass a plain LoraConfig through PeftModel.add_adapter.
        keyword = getattr(config, "structural_target", None)
        if keyword is None:
            return None
        config.target_modules = keyword  # instead of names from another model
        blocks = _BLOCK_FINDERS[keyword](
            model, block_pattern=config.block_pattern, exclude_blocks=config.exclude_blocks
        )
        config._resolved_targets = frozenset(path for paths in blocks.values() for path in paths)
        return keyword

    def _check_targets(self, model: nn.Module, config: GSLoraConfig) -> None:
        """Refuses targets that a pair of LoRA matrices cannot adapt, before anything is changed."""
        if (
            getattr(config, "is_structural", False)
            or config.target_modules == "all-linear"
            or has_custom_layers(config)
        ):
            return
        adapted: tuple[str, ...] = ()  # modules below an adapted layer belong to PEFT
        for path, module in model.named_modules():
            if not path or path.startswith(adapted):
                continue
            if isinstance(module, LoraLayer):
                adapted += (f"{path}.",)
                module = module.get_base_layer()
            if not self._check_target_module_exists(config, path):
                continue
            if not _is_linear(module):
                why = "it is not a Linear layer, and groups consist of Linear layers only"
            elif isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention):
                why = "nn.MultiheadAttention reads its weight without calling it, so that LoRA would do nothing"
            else:
                continue
            raise InvalidInputError(
                "target_modules",
                config.target_modules,
                f"modules that GS-LoRA can adapt, unlike {path!r} ({type(module).__name__}): {why}",
                "Narrow it, or leave the module out with `exclude_modules`.",
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        targets = getattr(peft_config, "_resolved_targets", None)
        if targets is None or not peft_config.is_structural:
            return check_target_module_exists(peft_config, key)
        if key not in targets:
            return False
        if peft_config.exclude_modules:
            # PEFT decides about the exclusion: with the target ".*" it looks at nothing else.
            return check_target_module_exists(_OnlyExclusion(peft_config), key)
        return True

    def _check_target_module_compatiblity(self, peft_config: Any, model: nn.Module, target_name: str) -> None:
        # PEFT checks this for the type LORA only. Mamba's kernels read weights instead of calling modules.
        like_lora: Any = SimpleNamespace(peft_type="LORA")
        super()._check_target_module_compatiblity(like_lora, model, target_name)

    @classmethod
    def _get_adapter_state_dict(cls, model: nn.Module, config: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        tensors = super()._get_adapter_state_dict(model, config, *args, **kwargs)
        odd = [
            name for name, tensor in tensors.items() if "lora_" in name and (tensor.dim() < 2 or not tensor.numel())
        ]
        if odd and not has_custom_layers(config):  # PEFT warns for the type LORA only
            warnings.warn(
                f"{len(odd)} of the LoRA matrices to save are flat or empty, e.g. {odd[0]!r} with shape "
                f"{tuple(tensors[odd[0]].shape)}: they are shards (DeepSpeed ZeRO-3, FSDP), and the saved adapter "
                "cannot be loaded. Gather them first with `accelerator.get_state_dict(model)`, and pass the result as "
                "`state_dict`.",
                stacklevel=2,
            )
        return tensors

    def _get_module_names_tied_with_embedding(self) -> Any:
        # Detectors with tied heads (Deformable DETR, RT-DETRv2, D-FINE, …) have no input embeddings. GS-LoRA adapts no
        # Linear that is tied to an embedding.
        try:
            return super()._get_module_names_tied_with_embedding()
        except NotImplementedError:
            return []

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        one = isinstance(adapter_name, str) or len(adapter_name) == 1
        if one or inference_mode:
            super().set_adapter(adapter_name, inference_mode=inference_mode)
            if self._flags_while_disabled is not None:  # a choice in between outlives `disable_adapter()`
                self._flags_while_disabled = dict(self._flags(set(self.peft_config)))
            return
        with self._kept_flags(set(self.peft_config)):
            super().set_adapter(adapter_name)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad=requires_grad)
        if self._flags_while_disabled is not None:
            names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
            self._flags_while_disabled.update(self._flags(names))

    def delete_adapter(self, adapter_name: str) -> None:
        active = [name for name in self.active_adapters if name != adapter_name]
        with self._kept_flags(set(self.peft_config) - {adapter_name}):
            super().delete_adapter(adapter_name)
            # PEFT takes the names that are left from the first layer, which may hold none of them, or skip one whose
            # group is zero.
            if active:
                self.active_adapter = active
            elif self.peft_config:
                self.active_adapter = [min(self.peft_config)]
                for layer in self.model.modules():
                    if isinstance(layer, LoraLayer):
                        layer.set_adapter(self.active_adapter)

    def disable_adapter_layers(self) -> None:
        if self._flags_while_disabled is None:
            self._flags_while_disabled = dict(self._flags(set(self.peft_config)))
        super().disable_adapter_layers()

    def enable_adapter_layers(self) -> None:
        flags = self._flags_while_disabled
        if flags is None:
            flags = dict(self._flags(set(self.peft_config)))
        super().enable_adapter_layers()
        self._restore(flags)
        self._flags_while_disabled = None

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Combines adapters like `LoraModel.add_weighted_adapter`; they may be on different modules.

        The new adapter's `target_modules` is a regular expression of all their modules. Only `combination_type="cat"`
        is exact; its rank is the sum of theirs.
        """
        originals: dict[str, Any] = dict(self.peft_config)
        try:
            for name in set(adapters) & set(originals):
                # PEFT joins the targets as text, and knows no keywords. The new matrices contain the scaling, so that
                # rank-stabilised scaling must not be applied again.
                self.peft_config[name] = replace(
                    originals[name],
                    target_modules="|".join(map(re.escape, self._paths_of(name))),
                    exclude_modules=None,
                    block_pattern=None,
                    exclude_blocks=None,
                    layers_to_transform=None,
                    layers_pattern=None,
                    use_rslora=False,
                )
            super().add_weighted_adapter(adapters, weights, adapter_name, *args, **kwargs)
        finally:
            self.peft_config.update(originals)

    def _paths_of(self, adapter_name: str) -> list[str]:
        return [
            path
            for path, layer in self.model.named_modules()
            if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A
        ]

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        super()._unload_and_optionally_merge(*args, **kwargs)
        for (path, attribute), value in (self._fast_path or {}).items():
            setattr(self.model.get_submodule(path), attribute, value)
        return self.model

    def _leave_encoder_fast_path(self, model: nn.Module) -> None:
        """Makes `nn.TransformerEncoderLayer` call its Linears in eval mode too.

        Its fused inference path reads `linear1.weight` instead of calling the module, so that LoRA would work in
        training and silently do nothing in evaluation. The flag only says "no fused activation"; the activation itself
        is unchanged. An encoder around such a layer must not pass nested tensors, which only the fused path takes.
        """
        self._fast_path = dict(self._fast_path or {})
        for path, module in model.named_modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                attribute, value = "activation_relu_or_gelu", 0
            elif isinstance(module, nn.TransformerEncoder):
                attribute, value = "use_nested_tensor", False
            else:
                continue
            if any(isinstance(child, LoraLayer) for child in module.modules()):
                self._fast_path.setdefault((path, attribute), getattr(module, attribute))
                setattr(module, attribute, value)

    def _flags(self, adapter_names: set[str]) -> Iterator[tuple[tuple[str, str, str], bool]]:
        """Yields (module path, kind of matrix, adapter) and `requires_grad`. Names fit a deep copy, too."""
        for path, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                for kind in ("lora_A", "lora_B"):
                    for adapter, linear in getattr(layer, kind).items():
                        if adapter in adapter_names:
                            yield (path, kind, adapter), linear.weight.requires_grad

    def _restore(self, flags: Flags) -> None:
        for (path, kind, adapter), requires_grad in flags.items():
            matrices = getattr(self.model.get_submodule(path), kind)
            if adapter in matrices:
                matrices[adapter].weight.requires_grad_(requires_grad)

    @contextmanager
    def _kept_flags(self, adapter_names: set[str]) -> Iterator[None]:
        flags = dict(self._flags(adapter_names))
        try:
            yield
        finally:
            self._restore(flags)


class _OnlyExclusion:
    """Stands for a configuration whose targets match every module, so that only `exclude_modules` decides."""

    target_modules = ".*"
    target_parameters = None
    modules_to_save = None

    def __init__(self, config: GSLoraConfig):
        self.exclude_modules = config.exclude_modules


def _absent(targets: Any, paths: list[str]) -> list[str]:
    """Returns the names in a list of targets that no module has, as PEFT reads such lists."""
    if not isinstance(targets, (list, tuple, set)):
        return []
    ends = tuple(f".{path}" for path in paths)
    return sorted(name for name in targets if not any(end.endswith(f".{name}") for end in ends))


def _may_adapt_nothing(config: Any) -> bool:
    """Whether an adapter may have no LoRA matrices: its target is PEFT's name for none, or it has custom layers."""
    return config.target_modules == DUMMY_TARGET_MODULES or has_custom_layers(config)


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear: torch's, GPT-2's transposed `Conv1D`, or a quantised one."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    return any(
        isinstance(getattr(module, name, None), int) for name in ("out_features", "outfeatures")
    ) and not isinstance(module, nn.Bilinear)
