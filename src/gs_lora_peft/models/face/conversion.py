"""Converts checkpoints of the papers' public code (`ViT_face`, `ViTs_face`) to folders that transformers loads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ...io import StrPath, as_path, staged_folder
from .configuration import FaceTransformerConfig
from .modeling import FaceTransformerForRecognition
from .processing import FaceImageProcessor

_CHANNELS = 3

# The only overlapping patch of the public code, and its stride: P12S8.
_OVERLAPPING_PATCH, _OVERLAPPING_STRIDE = 12, 8

# Angles of SFace in `ViTs_face`. Those of `ViT_face` are the defaults of the configuration.
_OVERLAPPING_SFACE = {"sface_intra_angle": 0.9, "sface_inter_angle": 1.2}

_OUTER = {
    "pos_embedding": "vit.embeddings.position_embeddings",
    "cls_token": "vit.embeddings.cls_token",
    "patch_to_embedding.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_to_embedding.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "mlp_head.0.weight": "vit.layernorm.weight",
    "mlp_head.0.bias": "vit.layernorm.bias",
    "loss.weight": "classifier.weight",
}

_BIAS = {"loss.bias": "classifier.bias"}
_QKV = "0.fn.fn.to_qkv.weight"

_INNER = {
    "0.fn.norm.weight": "layernorm_before.weight",
    "0.fn.norm.bias": "layernorm_before.bias",
    "0.fn.fn.to_out.0.weight": "attention.o_proj.weight",
    "0.fn.fn.to_out.0.bias": "attention.o_proj.bias",
    "1.fn.norm.weight": "layernorm_after.weight",
    "1.fn.norm.bias": "layernorm_after.bias",
    "1.fn.fn.net.0.weight": "mlp.fc1.weight",
    "1.fn.fn.net.0.bias": "mlp.fc1.bias",
    "1.fn.fn.net.3.weight": "mlp.fc2.weight",
    "1.fn.fn.net.3.bias": "mlp.fc2.bias",
}

_LAYER = re.compile(r"transformer\.layers\.(0|[1-9]\d{0,3})\.(.+)")
_FACTOR = re.compile(r"(?:0\.fn\.fn\.to_qkv|1\.fn\.fn\.net\.[03])\.lora_[AB]")


def convert_face_checkpoint(
    path: StrPath,
    out: StrPath,
    *,
    image_size: int | None = None,
    patch_padding: int | None = None,
    num_attention_heads: int = 8,
    head_type: str | None = None,
    scale: float = 64.0,
    margin: float | None = None,
    label_names: Sequence[str] | None = None,
    pixels: str = "unit",
) -> Path:
    """Converts a Face Transformer of the papers' public code to a folder for `from_pretrained`.

    The folder holds the model and its image processor. Depth, widths, patches and the number of people come from the
    shapes of the tensors. Other settings are arguments, with the defaults of that code. The file is read as plain
    tensors, and no code in it is executed.

    A file that was saved with LoRA holds weights that contain the LoRA factors already, because that code saves in
    evaluation mode, and the factors as well. The factors are left out.

    Args:
        path (`str` or `os.PathLike`):
            The `.pth` file: a state dict of `ViT_face` or `ViTs_face`.
        out (`str` or `os.PathLike`):
            The folder to create. It must be missing or empty.
        image_size (`int`, *optional*):
            Height and width of the images, in pixels. Needed for overlapping patches other than P12S8, and for patches
            of 12 pixels that do not overlap. By default patches of 12 pixels have a stride of 8, and others do not
            overlap.
        patch_padding (`int`, *optional*):
            As in [`FaceTransformerConfig`], for overlapping patches.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of attention heads.
        head_type (`str`, *optional*):
            `"cosface"`, `"arcface"` or `"sface"`, which have the same tensors. By default `"softmax"` if the head has
            a bias, else `"cosface"`.
        scale (`float`, *optional*, defaults to 64.0):
            Factor s of the head.
        margin (`float`, *optional*):
            Margin m of the head; by default that of [`FaceTransformerConfig`].
        label_names (`Sequence[str]`, *optional*):
            Names of the people, in the order of their ids.
        pixels (`str`, *optional*, defaults to `"unit"`):
            Kind of pixels that it was trained on, as in [`FaceImageProcessor.for_pixels`]. By default RGB in [0, 1],
            as in that code.

    Returns:
        `pathlib.Path`: `out`.

    Raises:
        InvalidInputError: If the file is not such a state dict (the error names the first wrong key), if a setting
            does not fit it, or if `out` holds files. Nothing is written then.
        OSError: If the file cannot be read, or the folder cannot be written.

    Example:
        ```py
        >>> folder = convert_face_checkpoint("face.pth", "face", scale=64, margin=0.35)
        >>> model = AutoModelForImageClassification.from_pretrained(folder)
        >>> processor = AutoImageProcessor.from_pretrained(folder)
        ```
    """
    path, out = as_path(path, "path"), as_path(out, "out")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidInputError("out", str(out), "a free path or an empty folder", "Choose another.")
    state = _read(path)
    _check_keys(state, path)
    settings = {"patch_padding": patch_padding, **_shape_settings(state, path, image_size, num_attention_heads)}
    settings |= _head_settings(state, path, head_type, scale, margin, label_names)
    if settings["patch_stride"] != settings["patch_size"]:
        settings |= _OVERLAPPING_SFACE
    model = FaceTransformerForRecognition(FaceTransformerConfig(**settings))
    processor = FaceImageProcessor.for_pixels(pixels, image_size=model.config.image_size)
    _load(model, state, path)
    with staged_folder(out) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)
    return out


def _read(path: StrPath) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        # torch raises many types of errors for damaged files, text, and pickles of other objects.
        except Exception as error:
            raise InvalidInputError(
                "path",
                str(path),
                f"plain tensors, as `torch.save(model.state_dict(), …)` writes them ({type(error).__name__})",
                "Save only the state dict: no code in a file is executed.",
            ) from error
    if not isinstance(content, Mapping) or not content:
        expected = "a state dict of ViT_face or ViTs_face"
        raise InvalidInputError(f"content of {path}", type(content).__name__, expected)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _wrong(path, key, type(value).__name__, "a tensor")
    # That code trains with nn.DataParallel on several GPUs.
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _check_keys(state: Mapping[str, Tensor], path: StrPath) -> None:
    """Refuses unknown keys, wrong numbers of dimensions and missing keys."""
    for key, tensor in state.items():
        layer = _LAYER.fullmatch(key)
        inner = layer is not None and (layer[2] in _INNER or layer[2] == _QKV or _FACTOR.fullmatch(layer[2]))
        if not (inner or key in _OUTER or key in _BIAS):
            raise _wrong(path, key, tuple(tensor.shape), "no tensor of that name")
        is_vector = key.endswith("bias") or ".norm." in key or key.startswith("mlp_head.")
        dimensions = 3 if key in ("pos_embedding", "cls_token") else 1 if is_vector else 2
        if tensor.ndim != dimensions:
            raise _wrong(path, key, tuple(tensor.shape), f"a shape of {dimensions} dimension(s)")
    inside = (f"transformer.layers.{i}.{name}" for i in range(max(_depth(state), 1)) for name in [*_INNER, _QKV])
    for key in [*_OUTER, *inside]:
        if key not in state:
            raise _wrong(path, key, None, "a tensor")


def _depth(state: Mapping[str, Tensor]) -> int:
    layers = (_LAYER.fullmatch(key) for key in state)
    return max((int(layer[1]) + 1 for layer in layers if layer is not None), default=0)


def _shape_settings(
    state: Mapping[str, Tensor], path: StrPath, image_size: int | None, num_attention_heads: int
) -> dict[str, Any]:
    """Returns depth, widths and patches by the shapes."""
    first = "transformer.layers.0."
    width = state["cls_token"].shape[-1]
    inner = state[first + _QKV].shape[0] // 3
    if num_attention_heads < 1 or inner % num_attention_heads:
        raise InvalidInputError(
            "num_attention_heads",
            num_attention_heads,
            f"a divisor of {inner}, the width of attention in '{path}'",
            "Give the number of heads it was trained with.",
        )
    projection, position = state["patch_to_embedding.weight"], state["pos_embedding"]
    columns, positions = projection.shape[1], position.shape[1]
    patch, grid = math.isqrt(columns // _CHANNELS), math.isqrt(max(positions - 1, 0))
    if patch < 1 or _CHANNELS * patch**2 != columns:
        expected = "3·p² columns for patches of p×p"
        raise _wrong(path, "patch_to_embedding.weight", tuple(projection.shape), expected)
    if grid < 1 or grid**2 + 1 != positions:
        raise _wrong(path, "pos_embedding", tuple(position.shape), "n² + 1 positions for n×n patches")
    if image_size is None:
        image_size = grid * (_OVERLAPPING_STRIDE if patch == _OVERLAPPING_PATCH else patch)
    if image_size < 1 or image_size % grid:
        raise InvalidInputError(
            "image_size",
            image_size,
            f"a multiple of the {grid} patches a side that '{path}' has",
            "Give the size of the images it was trained on, in pixels.",
        )
    return {
        "image_size": image_size,
        "patch_size": patch,
        "patch_stride": image_size // grid,
        "hidden_size": width,
        "num_hidden_layers": _depth(state),
        "num_attention_heads": num_attention_heads,
        "head_dim": inner // num_attention_heads,
        "intermediate_size": state[first + "1.fn.fn.net.0.weight"].shape[0],
    }


def _head_settings(
    state: Mapping[str, Tensor],
    path: StrPath,
    head_type: str | None,
    scale: float,
    margin: float | None,
    label_names: Sequence[str] | None,
) -> dict[str, Any]:
    has_bias = "loss.bias" in state
    if head_type is None:
        head_type = "softmax" if has_bias else "cosface"
    if (head_type == "softmax") != has_bias:
        expected = f"a type for the head in '{path}', which has {'a' if has_bias else 'no'} bias ('loss.bias')"
        raise InvalidInputError("head_type", head_type, expected, "Leave it out, or choose another.")
    people = state["loss.weight"].shape[0]
    if label_names is not None and len(label_names) != people:
        raise InvalidInputError("label_names", f"{len(label_names)} names", f"{people} names, one for each person")
    if label_names is not None and len(set(label_names)) != people:
        twice = next(place for place, name in enumerate(label_names) if name in label_names[:place])
        raise InvalidInputError(f"label_names[{twice}]", "an earlier name", "a different one for each person")
    names = list(label_names) if label_names is not None else [f"LABEL_{i}" for i in range(people)]
    return {
        "head_type": head_type,
        "scale": scale,
        "margin": margin,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _load(model: FaceTransformerForRecognition, state: Mapping[str, Tensor], path: StrPath) -> None:
    """Copies the tensors into the model, and refuses shapes that differ."""
    targets = model.state_dict()
    with torch.no_grad():
        for key, tensor in state.items():
            for name, part in _parts(key, tensor, model.config):
                if part.shape != targets[name].shape:
                    raise _wrong(path, key, tuple(tensor.shape), "a shape that fits the other tensors")
                targets[name].copy_(part)


def _parts(key: str, tensor: Tensor, config: FaceTransformerConfig) -> list[tuple[str, Tensor]]:
    """Returns the names and values of a tensor in the layout of transformers; none for a LoRA factor."""
    if key == "patch_to_embedding.weight":
        return [(_OUTER[key], _as_convolution(tensor, config))]
    if key in _OUTER or key in _BIAS:
        return [((_OUTER | _BIAS)[key], tensor)]
    layer = _LAYER.fullmatch(key)
    assert layer is not None
    prefix = f"vit.layers.{layer[1]}."
    if layer[2] == _QKV:
        return [(f"{prefix}attention.{n}_proj.weight", t) for n, t in zip("qkv", tensor.tensor_split(3), strict=True)]
    return [(prefix + _INNER[layer[2]], tensor)] if layer[2] in _INNER else []


def _as_convolution(weight: Tensor, config: FaceTransformerConfig) -> Tensor:
    patch = config.patch_size
    # The columns of a weight go through a patch in the order rows, columns, channels in ViT_face, and in that of
    # `nn.Unfold`, channels, rows, columns, in ViTs_face.
    if config.patch_stride == patch:
        return weight.unflatten(1, (patch, patch, _CHANNELS)).permute(0, 3, 1, 2)
    return weight.unflatten(1, (_CHANNELS, patch, patch))


def _wrong(path: StrPath, key: Any, value: Any, expected: str) -> InvalidInputError:
    """Returns the error for a key. Its value is the shape of a tensor, the type of another object, or `None`."""
    fix = "Give the state dict of a ViT_face or ViTs_face of the papers' code, with its head ('loss.weight')."
    return InvalidInputError(f"key {key!r} of {path}", value, expected, fix)
