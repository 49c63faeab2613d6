"""The plain LoRA form of an adapter: what is published, loadable by stock PEFT without this package."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")


def export_lora(
    model_or_folder: PeftModel | str | os.PathLike, out: str | os.PathLike, adapter_name: str | None = None
) -> Path:
    """
    Write an adapter as plain LoRA: `adapter_config.json` and `adapter_model.safetensors`, without what is zero.

    A LoRA pair with a factor that is entirely zero adds exactly 0 to its layer, so it is left out. Everything that
    remains is written as it is, so that stock PEFT, `AutoPeftModel` and transformers' `load_adapter` give bit-equal
    outputs in a process that never imports this package. The same adapter gives the same bytes every time. An adapter
    whose groups are all zero is written as one pair of zeros of rank 1, because PEFT refuses an adapter without modules.

    Args:
        model_or_folder (`PeftModel`, `str` or `os.PathLike`): a live model, or a folder that `save_pretrained` wrote.
        out (`str` or `os.PathLike`): folder to write to; made if missing. Both files are replaced atomically.
        adapter_name (`str`, *optional*): which adapter of a live model. By default the active one, if only one is.

    Returns:
        `pathlib.Path`: `out`.

    Raises:
        ValueError: if the adapter does not exist, if several are active and none is named, if the folder holds no
            readable adapter, or if the adapter is of a type that has no plain LoRA form.
    """
    if isinstance(model_or_folder, PeftModel):
        config, tensors = _from_model(model_or_folder, adapter_name)
        all_paths = [path for path, _ in model_or_folder.get_base_model().named_modules()]
    else:
        config, tensors = _from_folder(Path(model_or_folder))
        all_paths = []
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    kept = drop_zero_pairs(tensors)
    if not kept:
        config, kept = _all_zero(config, tensors)
    plain = _plain_config(config, sorted(_module_paths(kept)), all_paths)
    _replace(out / SAFETENSORS_WEIGHTS_NAME, save(kept, metadata={"format": "pt"}))
    _replace(out / CONFIG_NAME, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())
    return out


def drop_zero_pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out every LoRA pair whose product is zero because one of its factors is.

    Args:
        tensors (`dict[str, torch.Tensor]`): an adapter's state dict as PEFT saves it.

    Returns:
        `dict[str, torch.Tensor]`: contiguous CPU tensors, sorted by name.
    """
    zero = {_pair_of(name) for name, tensor in tensors.items() if _pair_of(name) and not tensor.any()}
    return {
        name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors) if _pair_of(name) not in zero
    }


def _pair_of(name: str) -> str | None:
    """What the two factors of one LoRA pair have in common in their names; `None` for other tensors."""
    for factor in _FACTORS:
        if name.endswith(factor):
            return name.removesuffix(factor)
    return None


def _from_model(model: PeftModel, adapter_name: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if adapter_name is None:
        if len(model.active_adapters) != 1:
            raise ValueError(
                f"{len(model.active_adapters)} adapters are active ({model.active_adapters}); name the one to export with "
                "`adapter_name`."
            )
        adapter_name = model.active_adapters[0]
    if adapter_name not in model.peft_config:
        raise ValueError(f"there is no adapter named {adapter_name!r}; the model has {sorted(model.peft_config)}.")
    config = model.peft_config[adapter_name]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"only LORA and GS_LORA adapters have a plain LoRA form, got {config.peft_type!r}.")
    values = config.to_dict()
    base = model.get_base_model()
    values["base_model_name_or_path"] = config.base_model_name_or_path or getattr(base, "name_or_path", None) or None
    if values.get("auto_mapping") is None and config.task_type is None:
        # What PEFT's own save_pretrained writes; AutoPeftModel needs it to find the base model's class.
        values["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return values, get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)


def _from_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_path, weights_path = folder / CONFIG_NAME, folder / SAFETENSORS_WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} is no adapter folder: {path.name!r} is missing. Give a folder that save_pretrained wrote "
                "(safetensors only; pickled weights are never read)."
            )
    try:
        config = json.loads(config_path.read_text())
        tensors = load_file(weights_path)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"the adapter in {str(folder)!r} cannot be read: {error}. Save it again.") from error
    if config.get("peft_type") not in ("LORA", "GS_LORA"):
        raise ValueError(f"only LORA and GS_LORA adapters have a plain LoRA form, got {config.get('peft_type')!r}.")
    return config, tensors


def _module_paths(tensors: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}


def _all_zero(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The smallest adapter that changes nothing: one pair of zeros of rank 1."""
    first = min(name.removesuffix(_FACTORS[0]) for name in tensors if name.endswith(_FACTORS[0]))
    factor_a, factor_b = tensors[first + _FACTORS[0]], tensors[first + _FACTORS[1]]
    zeros = {
        first + _FACTORS[0]: torch.zeros_like(factor_a[:1]),
        first + _FACTORS[1]: torch.zeros_like(factor_b[:, :1]),
    }
    zeros = {name: tensor.detach().cpu().contiguous() for name, tensor in zeros.items()}
    return {**config, "r": 1, "rank_pattern": {}, "alpha_pattern": {}}, zeros


def _plain_config(config: dict[str, Any], paths: list[str], all_paths: list[str]) -> dict[str, Any]:
    """The few fields of `LoraConfig` that decide the outputs; everything else is left at PEFT's defaults."""
    # A list entry also matches as a suffix ("layers.0.fc1" hits "decoder.layers.0.fc1"); then only a regex is exact.
    ambiguous = any(other.endswith(f".{path}") for path in paths for other in all_paths) if all_paths else False
    plain = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "task_type": config.get("task_type"),
        "auto_mapping": config.get("auto_mapping"),
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": "|".join(map(re.escape, paths)) if ambiguous else paths,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
    }
    for option in ("use_rslora", "fan_in_fan_out"):
        if config.get(option):
            plain[option] = True
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(option) or {}
        used = {get_pattern_key(patterns.keys(), path) for path in paths}
        if kept := {key: patterns[key] for key in sorted(patterns) if key in used}:
            plain[option] = kept
    return plain


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
