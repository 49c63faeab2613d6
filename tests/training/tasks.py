"""A task that trains in a fraction of a second: a ViT of three narrow blocks tells six kinds of noise apart."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from datasets import Array3D, ClassLabel, Dataset, Features
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from gs_lora_peft import GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments, LoraGroups
from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer, only_read

torch.set_num_threads(1)

NAMES = ["aardvark", "bobcat", "cuttlefish", "dromedary", "echidna", "flamingo"]
SHAPE = (3, 8, 8)
RETAIN = (0, 1, 2, 3)
FORGET = (4, 5)


def samples(classes: tuple[int, ...] = tuple(range(6)), per_class: int = 4, seed: int = 0) -> Dataset:
    """Noisy copies of one fixed pattern for each class: `pixel_values` (3, 8, 8), `label` with names."""
    patterns = torch.randn(len(NAMES), *SHAPE, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = [c for c in classes for _ in range(per_class)]
    pixels = [(patterns[c] + 0.5 * torch.randn(*SHAPE, generator=generator)).numpy() for c in labels]
    features = Features({"pixel_values": Array3D(SHAPE, "float32"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format("torch")


@functools.cache
def retain_set(per_class: int = 4) -> Dataset:
    return samples(RETAIN, per_class, seed=1)


@functools.cache
def forget_set(per_class: int = 3) -> Dataset:
    return samples(FORGET, per_class, seed=2)


@functools.cache
def scoring_set() -> Dataset:
    return samples(per_class=8, seed=3)


def vit(layers: int = 3, width: int = 16, dropout: float = 0.0, num_labels: int = 6, seed: int = 0):
    """A randomly initialised classifier."""
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            id2label=dict(enumerate(NAMES[:num_labels])),
            label2id={name: i for i, name in enumerate(NAMES[:num_labels])},
        )
    )


@functools.cache
def _knowing_weights(layers: int, width: int) -> dict[str, torch.Tensor]:
    model = vit(layers, width).train()
    data = samples(per_class=16, seed=4)[:]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(pixel_values=data["pixel_values"], labels=data["label"]).loss.backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def knowing_vit(layers: int = 3, width: int = 16, dropout: float = 0.0):
    """A classifier that knows all six classes, so that there is something to forget."""
    model = vit(layers, width, dropout)
    model.load_state_dict(_knowing_weights(layers, width))
    return model


def peft_vit(adapter: str = "default", *, layers: int = 3, dropout: float = 0.0, seed: int = 7, **config: Any):
    """A knowing classifier with a fresh adapter."""
    base = knowing_vit(layers, dropout=dropout)
    torch.manual_seed(seed)
    return get_peft_model(base, GSLoraConfig(**{"r": 2, **config}), adapter_name=adapter)


def two_adapters(dropout: float = 0.0):
    """An earlier task, frozen and active, and a fresh adapter that trains."""
    model = peft_vit("task_001", dropout=dropout)
    torch.manual_seed(8)
    model.add_adapter("task_002", GSLoraConfig(r=2))
    for name, parameter in model.named_parameters():
        if ".task_001." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.set_adapter("task_002")
    model.base_model.set_adapter(["task_001", "task_002"])
    assert trainable(model) == {"task_002"}
    return model


def lower_zero(model: Any, number: int = 2) -> Any:
    """The model with its lowest groups zero, as sparsity leaves them."""
    groups = LoraGroups(model, next(iter(trainable(model))))
    with torch.no_grad():
        for parameter, group in zip(groups.parameters, groups.group_of, strict=True):
            parameter.mul_(group >= number)
    return model


def arguments(folder: str | Path, method: Any = "gs_lora", **changes: Any) -> GSLoraTrainingArguments:
    """Three epochs of four steps on CPU, without shrinkage unless asked for; of these, what a method reads."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "logging_strategy": "no",
        # What the tests rely on, whatever the defaults are.
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.05,
        "forget_weight": 0.5,
        "forget_bound": 3.6,
        "forget_loss": "cross_entropy",
        "sparsity": "proximal",
        "sparsity_weight": 0.0,
        "sparsity_ramp_epochs": 0.0,
    }
    return GSLoraTrainingArguments(**{**only_read(settings, get_method(method).reads), **changes})


def trainer_for(model: Any, folder: str | Path, *, kwargs: dict[str, Any] | None = None, **changes: Any):
    """A trainer on the two small sets; `changes` go to the arguments, `kwargs` to the trainer."""
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), **(kwargs or {})}
    return GSLoraTrainer(model, arguments(folder, **changes), **data)


def ffn_trainer(model: Any, args: GSLoraTrainingArguments, **kwargs: Any) -> ForgettingTrainer:
    """The same trainer, by plain fine-tuning of the feed-forward Linears."""
    return ForgettingTrainer(model, args, method=get_method("ffn"), **kwargs)


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the matrices of every adapter."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def trainable(model: Any) -> set[str]:
    """Names of the adapters that train."""
    return {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}


def differences(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names under which two sets of tensors are not the same bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
