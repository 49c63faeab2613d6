"""Which weights are these? A fingerprint of a model that its adapters, its device and its wrappers do not change."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InvalidInputError
from ..io import public_name

_FORMAT = "gs-lora-peft weights 1"


def weights_fingerprint(model_or_state_dict: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a model's persistent weights and buffers.

    The same weights give the same fingerprint on every device, bare or wrapped by PEFT (as long as no adapter is
    merged: merging changes weights), by `DistributedDataParallel` or by `torch.compile`, and whether tied weights are
    listed once or under each of their names. Another value, dtype or shape anywhere gives another fingerprint.

    How: equal tensors count once. Names are taken in where several tensors have the same dtype and shape and could be
    swapped, and are left out where a tensor is the only one of its kind, as embeddings are, so that it does not matter
    which of its names a tied one bears.

    Args:
        model_or_state_dict (`nn.Module` or `Mapping[str, torch.Tensor]`):
            A model or its state dict. Entries that are not tensors are not looked at.

    Returns:
        `str`: `"sha256:"` and 64 hexadecimal digits.

    Raises:
        ValueError: There are no weights, they are on the meta device, or they are tensors of another make, such as the
            quantised ones of torchao, whose content no other library can read.
    """
    if isinstance(model_or_state_dict, nn.Module):
        from ..compat import bare

        state: Mapping[str, Any] = bare(model_or_state_dict).state_dict()
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
        raise InvalidInputError("model_or_state_dict", list(state), "one weight at least", fix)
    lines = [
        f"{dtype} {list(shape)} {content}" + (f" {name}" if len(contents) > 1 else "")
        for (dtype, shape), contents in kinds.items()
        for content, name in contents.items()
    ]
    return "sha256:" + hashlib.sha256("\n".join([_FORMAT, *sorted(lines)]).encode()).hexdigest()


def model_identity(model: nn.Module) -> dict[str, Any]:
    """Who a base model is, as the ledger records it.

    Args:
        model (`nn.Module`):
            The model, bare or wrapped by PEFT.

    Returns:
        `dict`: `name_or_path` (a Hub id; of a local folder only its last part, so that nothing of the machine's paths.
        gets out; `None` if unknown), `revision` (the Hub commit it was loaded from or `None`), `model_class`,
        `num_labels` (or `None`), `tied_heads` (only where it is so: detectors whose heads are tied to each other, see
        [`has_tied_heads`]) and `fingerprint` (see [`weights_fingerprint`]).
    """
    from ..compat import bare, has_tied_heads, loaded_from
    from ..objectives import head_size

    own = bare(model)
    raw_name, commit = loaded_from(own)
    name, revision = public_name(raw_name or "")
    return {
        "name_or_path": name,
        "revision": commit or revision,
        "model_class": type(own).__name__,
        "num_labels": head_size(own),
        **({"tied_heads": True} if has_tied_heads(own) else {}),
        "fingerprint": weights_fingerprint(own),
    }


def _bare_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Maps the keys of a state dict to the names they have without PEFT; what PEFT added is left out."""
    prefix = "base_model.model."
    start = len(prefix) if state and all(key.startswith(prefix) for key in state) else 0
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
    # The siblings must agree: some architectures have a module of their own that is called `base_layer`.
    if "base_layer" in children and all(c == "base_layer" or c.startswith("lora_") for c in children):
        return "base_layer"
    if "original_module" in children and children <= {"original_module", "modules_to_save"}:
        return "original_module"
    return None


def _content_hash(name: str, tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        fix = "Load the checkpoint first (`from_pretrained`, or `to_empty` and `load_state_dict`)."
        raise InvalidInputError(f"the device of {name!r}", "meta", "a device with values", fix)
    from ..compat import is_foreign

    if is_foreign(tensor):
        raise InvalidInputError(
            f"the weight {name!r}",
            type(tensor).__name__,
            "numbers as torch stores them",
            "Take the fingerprint of the model before it is quantised.",
        )
    data = tensor.detach().cpu().contiguous().reshape(-1)
    # Bytes are compared, so NaNs, signed zeros and dtypes that numpy does not know (bfloat16, float8) count as stored.
    return hashlib.sha256(data.view(torch.uint8).numpy().data).hexdigest() if data.numel() else "empty"
