"""Writes an adapter as plain LoRA, which stock PEFT loads without this package."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..compat import PEFT_PREFIX, bare, base_state, own_class
from ..errors import InvalidInputError
from ..io import as_path, write_bytes_atomic
from .config import check_plain_lora, mapping_problem
from .targets import exact_targets, names_modules

_FACTORS = (".lora_A.weight", ".lora_B.weight")


def export_lora(
    model_or_folder: PeftModel | str | os.PathLike,
    out: str | os.PathLike,
    adapter_name: str | None = None,
    *,
    base_model_name_or_path: str | None = None,
) -> Path:
    """Writes an adapter as plain LoRA: `adapter_config.json` and `adapter_model.safetensors`, without zero pairs.

    A LoRA pair with a factor that is entirely zero adds exactly 0 to its layer, and is left out. The other pairs are
    written as they are. Stock PEFT, `AutoPeftModel` and transformers' `load_adapter` give bit-equal outputs in a
    process that never imports this package. The same adapter always gives the same bytes. If all groups are zero, the
    file has no tensors, and `target_modules` is PEFT's name for no module.

    `target_modules` is the sorted list of the full names of the modules that remain. It is a regular expression if
    such a name is also the end of another module's name, because PEFT's suffix matching would hit both. This is seen
    only for a live model: a folder does not list the other modules.

    Limits of the loaders: `torch.nn.TransformerEncoder` ignores stock PEFT's LoRA in eval mode. Merge the adapter
    there, or call `torch.backends.mha.set_fastpath_enabled(False)`. transformers' `load_adapter` rounds the matrices
    to the dtype of the base model, while PEFT keeps them in float32. On detectors with tied heads (Deformable DETR,
    DAB-DETR, RT-DETRv2, D-FINE) stock PEFT raises `NotImplementedError` unless `config.tie_word_embeddings` is `False`
    while it loads.

    Args:
        model_or_folder (`PeftModel`, `str` or `os.PathLike`):
            A live model, or a folder that `save_pretrained` wrote.
        out (`str` or `os.PathLike`):
            Folder to write to; created if missing. Both files are replaced atomically.
        adapter_name (`str`, *optional*):
            Adapter of a live model. By default the active one, if only one is active.
        base_model_name_or_path (`str`, *optional*):
            Name of the base model in the configuration. By default the name that it was loaded by, which is a path on
            this machine for a local folder.

    Returns:
        `pathlib.Path`: `out`.

    Raises:
        InvalidInputError: If the adapter does not exist, if several are active and none is named, if the folder holds
            no readable adapter, or if the type or an option of the adapter has no plain LoRA form. Nothing is written
            then.
    """
    out = as_path(out, "out")
    if isinstance(model_or_folder, PeftModel):
        config, tensors = _from_model(model_or_folder, adapter_name)
    else:
        config, tensors = _from_folder(as_path(model_or_folder, "model_or_folder"))
    _check_exportable(config, tensors)
    kept = drop_zero_pairs(tensors)
    known_paths = _module_paths(tensors)
    if isinstance(model_or_folder, PeftModel):
        known_paths |= {path for path, _ in bare(model_or_folder).named_modules()}
    if base_model_name_or_path is not None:
        config = {**config, "base_model_name_or_path": base_model_name_or_path}
    plain = _plain_config(config, sorted(_module_paths(kept)), known_paths)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(out / SAFETENSORS_WEIGHTS_NAME, save(kept, metadata={"format": "pt"}))
    write_bytes_atomic(out / CONFIG_NAME, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())
    return out


def drop_zero_pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out every LoRA pair with a factor that is entirely zero.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            An adapter's state dict as PEFT saves it.

    Returns:
        `dict[str, torch.Tensor]`: Contiguous CPU tensors, sorted by name.
    """
    zero = {_pair_of(name) for name, tensor in tensors.items() if _pair_of(name) and not tensor.any()}
    return {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors) if _pair_of(name) not in zero}


def _pair_of(name: str) -> str | None:
    """Returns the part of the name that both factors of a LoRA pair share, or `None` for other tensors."""
    for factor in _FACTORS:
        if name.endswith(factor):
            return name.removesuffix(factor)
    return None


def _from_model(model: PeftModel, adapter_name: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if adapter_name is None:
        if len(model.active_adapters) != 1:
            expected = f"the one of the active adapters {model.active_adapters} to export"
            raise InvalidInputError("adapter_name", None, expected)
        adapter_name = model.active_adapters[0]
    if adapter_name not in model.peft_config:
        raise InvalidInputError("adapter_name", adapter_name, f"one of {sorted(model.peft_config)}")
    config = model.peft_config[adapter_name]
    values = config.to_dict()
    if not isinstance(config, LoraConfig):
        return values, {}
    base = bare(model)
    values["base_model_name_or_path"] = config.base_model_name_or_path or getattr(base, "name_or_path", None) or None
    if values.get("auto_mapping") is None and config.task_type is None:
        # As PEFT's own save_pretrained does. AutoPeftModel needs it to find the base model's class.
        values["auto_mapping"] = {
            "base_model_class": own_class(base).__name__,
            "parent_library": own_class(base).__module__,
        }
    state = base_state(base)
    tensors = get_peft_model_state_dict(base, state, adapter_name=adapter_name, save_embedding_layers=False)
    return values, {f"{PEFT_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def _from_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config_path, weights_path = folder / CONFIG_NAME, folder / SAFETENSORS_WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise InvalidInputError(
                "model_or_folder",
                str(folder),
                f"an adapter folder with {path.name!r}",
                "Give a folder that save_pretrained wrote (safetensors only; pickled weights are never read).",
            )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        tensors = load_file(weights_path)
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG_NAME} is not an object")
    except (ValueError, SafetensorError) as error:
        expected = f"an adapter that can be read ({error})"
        raise InvalidInputError("model_or_folder", str(folder), expected, "Save it again.") from error
    return config, tensors


def _check_exportable(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses an adapter that the plain form would change."""
    kind = config.get("peft_type")
    kind = getattr(kind, "value", kind)
    if kind not in ("LORA", "GS_LORA"):
        raise InvalidInputError("peft_type", kind, "LORA or GS_LORA, because other types have no plain LoRA form")
    check_plain_lora(config, "the plain LoRA form")
    for name in ("r", "lora_alpha"):
        if not isinstance(value := config.get(name), int | float):
            expected = f"a number in {CONFIG_NAME}, because LoRA's scaling depends on it"
            raise InvalidInputError(name, value, expected, "Save the adapter again.")
    pairs = {pair for name in tensors if (pair := _pair_of(name))}
    complete = {pair + factor for pair in pairs for factor in _FACTORS}
    is_empty = not tensors and config.get("target_modules") == DUMMY_TARGET_MODULES
    if complete != set(tensors) or not (tensors or is_empty):
        odd = sorted(complete ^ set(tensors))
        raise InvalidInputError(
            "tensors",
            odd,
            "pairs of lora_A and lora_B matrices, because other tensors have no plain LoRA form",
            "Export an adapter that was trained on Linear layers, without further trained modules.",
        )


def _module_paths(tensors: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for name in tensors}


def _plain_config(config: dict[str, Any], paths: list[str], known_paths: set[str]) -> dict[str, Any]:
    """Returns the fields of `LoraConfig` that decide the outputs. All others are left at PEFT's defaults."""
    targets = exact_targets(paths, known_paths) if paths else DUMMY_TARGET_MODULES  # PEFT refuses an empty list
    plain = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.get("base_model_name_or_path") or None,
        "revision": config.get("revision"),
        "task_type": config.get("task_type"),
        "auto_mapping": _known_mapping(config.get("auto_mapping")),
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": targets,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
    }
    for option in ("use_rslora", "fan_in_fan_out"):
        if config.get(option):
            plain[option] = True
    for option in ("rank_pattern", "alpha_pattern"):
        if patterns := _used_patterns(config.get(option) or {}, paths):
            plain[option] = patterns
    return plain


def _known_mapping(mapping: Any) -> Any:
    """Returns PEFT's note on the class to load, if it is part of a known library.

    Readers refuse to import others, and the name of a private module is not published.
    """
    return mapping if mapping and mapping_problem(mapping) is None else None


def _used_patterns(patterns: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """Returns the entries of a `rank_pattern` or `alpha_pattern` that the remaining modules use.

    PEFT takes the first entry that matches, and the file is sorted. Each module gets an entry of its own if sorting
    would let another entry match first, or if an entry is a real regular expression, which readers of a published file
    refuse.
    """
    key_of = {path: get_pattern_key(list(patterns), path) for path in paths}
    kept = {key: patterns[key] for key in sorted(patterns) if key in key_of.values()}
    in_order = all(get_pattern_key(list(kept), path) == key for path, key in key_of.items())
    if in_order and all(map(names_modules, kept)):
        return kept
    return {f"^{re.escape(path)}": patterns[key] for path, key in key_of.items() if key in patterns}
