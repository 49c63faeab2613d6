"""Small face models, and the checkpoint layout of the papers' code with a slow forward pass of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_lora_peft import FaceTransformerConfig, FaceTransformerForRecognition

PEOPLE = 5


def face_model(seed: int = 0, **changes: Any) -> FaceTransformerForRecognition:
    """Two narrow blocks on images of 16×16, without dropout."""
    settings: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "scale": 16.0,
        "num_labels": PEOPLE,
    }
    torch.manual_seed(seed)
    return FaceTransformerForRecognition(FaceTransformerConfig(**{**settings, **changes})).eval()


def images(count: int = 6, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def people(count: int = 6) -> Tensor:
    return torch.arange(count) % PEOPLE


def author_state(
    depth: int = 2,
    width: int = 16,
    inner: int = 16,
    hidden: int = 32,
    patch: int = 4,
    grid: int = 4,
    bias: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A state dict of `ViT_face` or `ViTs_face` with random values."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {
        "pos_embedding": values(1, grid**2 + 1, width),
        "cls_token": values(1, 1, width),
        "patch_to_embedding.weight": values(width, 3 * patch**2),
        "patch_to_embedding.bias": values(width),
    }
    for i in range(depth):
        attention, forward = f"transformer.layers.{i}.0.fn.", f"transformer.layers.{i}.1.fn."
        state |= {
            attention + "norm.weight": 1 + values(width),
            attention + "norm.bias": values(width),
            attention + "fn.to_qkv.weight": values(3 * inner, width),
            attention + "fn.to_out.0.weight": values(width, inner),
            attention + "fn.to_out.0.bias": values(width),
            forward + "norm.weight": 1 + values(width),
            forward + "norm.bias": values(width),
            forward + "fn.net.0.weight": values(hidden, width),
            forward + "fn.net.0.bias": values(hidden),
            forward + "fn.net.3.weight": values(width, hidden),
            forward + "fn.net.3.bias": values(width),
        }
    state |= {"mlp_head.0.weight": 1 + values(width), "mlp_head.0.bias": values(width)}
    state["loss.weight"] = values(PEOPLE, width)
    if bias:
        state["loss.bias"] = values(PEOPLE)
    return state


def author_embeddings(
    state: dict[str, Tensor], pixels: Tensor, heads: int = 2, stride: int | None = None, padding: int = 0
) -> Tensor:
    """What the layout means, spelled out: one image, one patch, one head at a time, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    return torch.stack([_author_embedding(state, image.double(), heads, stride, padding) for image in pixels])


def _author_embedding(state: dict[str, Tensor], image: Tensor, heads: int, stride: int | None, padding: int) -> Tensor:
    size = round((state["patch_to_embedding.weight"].shape[1] / 3) ** 0.5)
    grid = round((state["pos_embedding"].shape[1] - 1) ** 0.5)
    padded = F.pad(image, (padding,) * 4)
    rows = [state["cls_token"][0, 0]]
    for y in range(grid):
        for x in range(grid):
            top, left = y * (stride or size), x * (stride or size)
            patch = padded[:, top : top + size, left : left + size]
            # Only the overlapping variant lists a patch channel by channel.
            row = (
                patch.reshape(-1)
                if stride
                else torch.stack([patch[:, i, j] for i in range(size) for j in range(size)])
            )
            rows.append(state["patch_to_embedding.weight"] @ row.reshape(-1) + state["patch_to_embedding.bias"])
    tokens = torch.stack(rows) + state["pos_embedding"][0]
    width, layer = tokens.shape[1], 0

    def norm(values: Tensor, name: str) -> Tensor:
        return F.layer_norm(values, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    while f"transformer.layers.{layer}.0.fn.norm.weight" in state:
        attention, forward = f"transformer.layers.{layer}.0.fn", f"transformer.layers.{layer}.1.fn"
        q, k, v = (norm(tokens, f"{attention}.norm") @ state[f"{attention}.fn.to_qkv.weight"].T).chunk(3, dim=1)
        mixed = [
            ((a @ b.T) * width**-0.5).softmax(1) @ c
            for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
        ]
        out = f"{attention}.fn.to_out.0"
        tokens = tokens + torch.cat(mixed, 1) @ state[f"{out}.weight"].T + state[f"{out}.bias"]
        up = (
            norm(tokens, f"{forward}.norm") @ state[f"{forward}.fn.net.0.weight"].T + state[f"{forward}.fn.net.0.bias"]
        )
        tokens = tokens + F.gelu(up) @ state[f"{forward}.fn.net.3.weight"].T + state[f"{forward}.fn.net.3.bias"]
        layer += 1
    return norm(tokens[0], "mlp_head.0")


def author_logits(state: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """Cosines, or the logits of the softmax head where there is a bias."""
    weight = state["loss.weight"].double()
    if "loss.bias" in state:
        return embeddings @ weight.T + state["loss.bias"].double()
    return torch.stack([F.cosine_similarity(row[None], weight) for row in embeddings])
