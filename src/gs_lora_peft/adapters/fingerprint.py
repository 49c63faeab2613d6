"""A fingerprint of a model's weights, independent of adapters, device and wrappers."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..compat import (
    PEFT_PREFIX,
    bare,
    base_state,
    has_tied_heads,
    inner_tensors,
    is_foreign,
    loaded_from,
    own_class,
    release_gathered,
    whole,
)
from ..errors import InvalidInputError
from ..io import public_name
from ..objectives import head_size

_FORMAT = "gs-lora-peft weights 1"


def weights_fingerprint(model_or_state_dict: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of a model's persistent weights and buffers.

    The same weights have the same fingerprint on every device, bare or wrapped by PEFT (without merged adapters), by
    `DistributedDataParallel` or by `torch.compile`, with tied weights listed once or under each of their names. A
    change of any value, dtype or shape changes the fingerprint. Shards (FSDP 2) are gathered one at a time, so that
    every process has to call this function.

    Of a weight that torchao has quantised, the tensors count that it consists of, and the name of its class.

    How it works: equal tensors count once. Names count only among tensors of the same dtype and shape, which could be
    swapped. The name of a tensor with a unique dtype and shape, such as an embedding, is left out, so that it does not
    matter under which of its names a tied tensor is listed.

    Args:
        model_or_state_dict (`nn.Module` or `Mapping[str, torch.Tensor]`):
            A model or its state dict. Values that are not tensors are ignored.

    Returns:
        `str`: `"sha256:"` and 64 hexadecimal digits.

    Raises:
        ValueError: If there are no weights, or they are on the meta device or in a tensor type that torch cannot read,
            and which does not tell its parts.
    """
    if isinstance(model_or_state_dict, nn.Module):
        release_gathered(bare(model_or_state_dict))
        state: Mapping[str, Any] = base_state(bare(model_or_state_dict))
    elif isinstance(model_or_state_dict, Mapping):
        state = model_or_state_dict
    else:
        expected = "a torch.nn.Module or a state dict"
        raise InvalidInputError("model_or_state_dict", model_or_state_dict, expected, "Pass the model itself.")
    kinds: dict[tuple[str, tuple[int, ...]], dict[str, str]] = defaultdict(dict)
    for name, key in sorted((name, key) for key, name in _bare_names(state).items()):
        tensor = state[key]
        if isinstance(tensor, torch.Tensor):
            kind = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            kinds[kind].setdefault(_content_hash(name, tensor), name)
    if not kinds:
        fix = "Pass the model that was pre-trained."
        raise InvalidInputError("model_or_state_dict", list(state), "at least one weight", fix)
    lines = [
        f"{dtype} {list(shape)} {content}" + (f" {name}" if len(contents) > 1 else "")
        for (dtype, shape), contents in kinds.items()
        for content, name in contents.items()
    ]
    return "sha256:" + hashlib.sha256("\n".join([_FORMAT, *sorted(lines)]).encode()).hexdigest()


def model_identity(model: nn.Module) -> dict[str, Any]:
    """Returns the identity of a base model, as the ledger records it.

    Args:
        model (`nn.Module`):
            The model, bare or wrapped by PEFT.

    Returns:
        `dict[str, Any]`: `name_or_path` (a Hub id, or the last part of a local path, which reveals no folders;
        `None` if unknown), `revision` (Hub commit, or `None`), `model_class`, `num_labels` (or `None`), `tied_heads`
        (`True` for detectors with tied heads, see [`has_tied_heads`]; else absent) and `fingerprint` (see
        [`weights_fingerprint`]).
    """
    own = bare(model)
    raw_name, commit = loaded_from(own)
    name, revision = public_name(raw_name or "")
    return {
        "name_or_path": name,
        "revision": commit or revision,
        "model_class": own_class(own).__name__,
        "num_labels": head_size(own),
        **({"tied_heads": True} if has_tied_heads(own) else {}),
        "fingerprint": weights_fingerprint(own),
    }


def _bare_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Maps the keys of a state dict to their names without PEFT. Keys that PEFT added are absent."""
    start = len(PEFT_PREFIX) if state and all(key.startswith(PEFT_PREFIX) for key in state) else 0
    children: dict[str, set[str]] = defaultdict(set)
    for key in state:
        for dot in [start - 1, *(i for i, c in enumerate(key) if c == "." and i >= start)]:
            children[key[: dot + 1]].add(key[dot + 1 :].partition(".")[0])
    names = {}
    for key in state:
        kept: list[str] = []
        position = start
        for part in key[start:].split("."):
            wrapped = _wrapped_child(children[key[:position]])
            if wrapped is not None and part != wrapped:
                break
            if wrapped is None:
                kept.append(part)
            position += len(part) + 1
        else:
            names[key] = ".".join(kept)
    return names


def _wrapped_child(children: set[str]) -> str | None:
    # All siblings must match: some architectures have their own module called `base_layer`.
    if "base_layer" in children and all(c == "base_layer" or c.startswith("lora_") for c in children):
        return "base_layer"
    if "original_module" in children and children <= {"original_module", "modules_to_save"}:
        return "original_module"
    return None


def _content_hash(name: str, tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        fix = "Load the checkpoint first (`from_pretrained`, or `to_empty` and `load_state_dict`)."
        raise InvalidInputError(f"the device of {name!r}", "meta", "a device with values", fix)
    if inner := inner_tensors(tensor):
        lines = (f"{part} {own.dtype} {list(own.shape)} {_content_hash(part, own)}" for part, own in inner.items())
        return hashlib.sha256("\n".join([type(tensor).__name__, *lines]).encode()).hexdigest()
    if is_foreign(tensor):
        raise InvalidInputError(
            f"the weight {name!r}",
            type(tensor).__name__,
            "a tensor type that torch can read",
            "Take the fingerprint of the model before it is quantised.",
        )
    data = whole(tensor).cpu().contiguous().reshape(-1)
    # Bytes cover NaNs, signed zeros and dtypes that numpy lacks (bfloat16, float8).
    return hashlib.sha256(data.view(torch.uint8).numpy().data).hexdigest() if data.numel() else "empty"
