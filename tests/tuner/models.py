"""Tiny models, each built anew from a fixed seed, and what a test needs to know about them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from gs_lora_peft import GSLoraConfig


class MLP(nn.Module):
    """Two Linears and a head; no Transformer, so that its targets have to be named."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.fc2(self.relu(self.fc1(x)))))


class EncoderClassifier(nn.Module):
    """PyTorch's own encoder, whose fused inference path reads weights instead of calling modules."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP()


def vit(layers: int = 2, labels: int = 3) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=labels,
    )
    return _spread(ViTForImageClassification(config))


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return _spread(BertForSequenceClassification(config))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _spread(GPT2LMHeadModel(config))


def encoder(layers: int = 2) -> EncoderClassifier:
    torch.manual_seed(0)
    return EncoderClassifier(layers)


def _spread(model: nn.Module) -> Any:
    """Weights far enough from 0 that an adapter changes the logits visibly (the usual std is 0.02)."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One model of the conformance test.

    Args:
        name (`str`): for test ids.
        build (`Callable`): makes the model, always with the same weights.
        batch (`dict`): arguments of its forward, batch of 4.
        labels (`Tensor`): one per sample (per token for GPT-2).
        targets (`str` or `list[str]`): the feed-forward Linears for stock LORA.
        ffn (`str` or `list[str]`): the same ones for GS_LORA.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    labels: Tensor
    targets: str | list[str]
    ffn: str | list[str] = "ffn"
    fan_in_fan_out: bool = False

    def config(self, kind: str, **options: Any) -> LoraConfig:
        """A configuration with B drawn at random, so that the adapter has an effect before any training."""
        defaults = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "fan_in_fan_out": self.fan_in_fan_out}
        options = {**defaults, **options}
        if kind == "LORA":
            return LoraConfig(**{"target_modules": self.targets, **options})
        return GSLoraConfig(**{"target_modules": self.ffn, **options})

    def wrapped(self, kind: str, adapter_name: str = "default", **options: Any) -> Any:
        """The model with one adapter, always with the same matrices, in eval mode."""
        model = self.build()
        torch.manual_seed(1)
        return get_peft_model(model, self.config(kind, **options), adapter_name=adapter_name).eval()

    def add(self, model: Any, kind: str, name: str, seed: int = 2, **options: Any) -> Any:
        """Add a second adapter to a wrapped model."""
        torch.manual_seed(seed)
        model.add_adapter(name, self.config(kind, **options))
        return model

    def logits(self, model: nn.Module, **extra: Any) -> Tensor:
        """Outputs without gradients, in whatever mode the model is."""
        with torch.no_grad():
            return self._forward(model, **extra)

    def loss(self, model: nn.Module) -> Tensor:
        logits = self._forward(model).float()
        return nn.functional.cross_entropy(logits.flatten(0, -2), self.labels.flatten())

    def _forward(self, model: nn.Module, **extra: Any) -> Tensor:
        dtype = next(p.dtype for p in model.parameters())
        batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in self.batch.items()}
        outputs = model(**batch, **extra)
        return outputs if isinstance(outputs, Tensor) else outputs.logits


def _cases() -> list[Case]:
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(40, (4, 6), generator=draw)
    labels = torch.tensor([0, 1, 2, 1])
    images = torch.randn(4, 3, 8, 8, generator=draw)
    features = torch.randn(4, 8, generator=draw)
    return [
        Case("mlp", mlp, {"x": features}, labels, ["fc1", "fc2"], ["fc1", "fc2"]),
        Case("vit", vit, {"pixel_values": images}, labels, ["mlp.fc1", "mlp.fc2"]),
        Case("bert", bert, {"input_ids": tokens}, labels, r".*\.layer\.\d+\.(intermediate|output)\.dense"),
        Case("gpt2", gpt2, {"input_ids": tokens}, tokens, r".*\.mlp\.c_(fc|proj)", fan_in_fan_out=True),
    ]


CASES = {case.name: case for case in _cases()}
