"""What the walks through public bug reports share: a tiny ViT that knows five kinds of 32×32 pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from gs_lora_peft import ContinualForgetter, GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments, split_dataset

NAMES = ["ant", "bee", "cow", "dog", "elk"]
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32})
PATTERNS = np.random.default_rng(7).integers(40, 215, (len(NAMES), 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)


def arrays(per_class: int = 6, seed: int = 0, classes: int = len(NAMES)) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 32, 32, 3) of 8 bits, four by four coloured fields with noise, and their classes."""
    labels = np.repeat(np.arange(classes), per_class)
    noise = np.random.default_rng(seed).integers(-40, 41, (len(labels), 32, 32, 3))
    return (PATTERNS[labels] + noise).astype(np.uint8), labels


def pictures(per_class: int = 6, seed: int = 0, names: list[str] | None = None, column: str = "image") -> Dataset:
    """The same as a data set of PNG files."""
    images, labels = arrays(per_class, seed)
    features = Features({column: Image(), "label": ClassLabel(names=names or NAMES)})
    return Dataset.from_dict({column: list(images), "label": labels}, features=features)


def data() -> DatasetDict:
    return DatasetDict(train=pictures(), test=pictures(4, seed=1))


def vit(**config: Any) -> ViTForImageClassification:
    """A classifier that knows nothing yet."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: number for number, name in enumerate(NAMES)},
    }
    return ViTForImageClassification(ViTConfig(**{**settings, **config}))


def pixels(images: Any) -> torch.Tensor:
    return PROCESSOR(list(images), return_tensors="pt")["pixel_values"]


def pretrain(folder: Path) -> None:
    """Teaches the classifier all five kinds, and saves it with its image processor."""
    model = vit().train()
    images, labels = arrays(12, seed=9)
    inputs, targets = pixels(images), torch.tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs).logits, targets).backward()
        optimizer.step()
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)


def load(folder: Path, **kwargs: Any) -> ViTForImageClassification:
    return ViTForImageClassification.from_pretrained(folder, **kwargs).eval()


def adapted(folder: Path, adapter: str = "default", prepare: Any = None, **config: Any) -> Any:
    """The classifier with a fresh adapter; `prepare` sees the bare model before."""
    base = load(folder)
    if prepare is not None:
        prepare(base)
    torch.manual_seed(1)
    return get_peft_model(base, GSLoraConfig(**{"r": 4, "lora_alpha": 4, **config}), adapter_name=adapter)


def arguments(folder: Any, **changes: Any) -> GSLoraTrainingArguments:
    """Two seconds at most; dense, so that a test says what it is about."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.02,
        "forget_weight": 0.5,
        "sparsity": "none",
        "logging_strategy": "no",
    }
    return GSLoraTrainingArguments(**{**settings, **changes})


def trainer_for(model: Any, folder: Any, dataset: Dataset | None = None, forget: Any = ("bee",), **changes: Any):
    """A trainer that forgets one kind; `kwargs` in `changes` go to the trainer, the others to its arguments."""
    kwargs = {"processing_class": PROCESSOR, **changes.pop("kwargs", {})}
    split = split_dataset(pictures() if dataset is None else dataset, list(forget))
    return GSLoraTrainer(
        model, arguments(folder, **changes), forget_dataset=split.forget, retain_dataset=split.retain, **kwargs
    )


def forgetter_for(folder: Path, run: Path, dataset: Any = None, *, base: Any = None, **kwargs: Any):
    settings = {
        "config": GSLoraConfig(r=4, lora_alpha=4),
        "args": arguments("not-used"),
        "processing_class": PROCESSOR,
    }
    return ContinualForgetter(
        load(folder) if base is None else base, data() if dataset is None else dataset, run, **{**settings, **kwargs}
    )


@torch.no_grad()
def accuracy(model: nn.Module, *, seed: int = 1) -> dict[str, float]:
    """The share of pictures of each kind that a model knows, without any of this package's data handling."""
    images, labels = arrays(8, seed)
    was_training = model.training
    guesses = model.eval()(pixel_values=pixels(images).to(next(model.parameters()).dtype)).logits.argmax(-1).numpy()
    model.train(was_training)
    return {name: float((guesses[labels == number] == number).mean()) for number, name in enumerate(NAMES)}


def forgot(model: nn.Module, *forgotten: str) -> bool:
    """Whether a model knows everything but these."""
    known = accuracy(model)
    return all(known[name] <= 0.2 if name in forgotten else known[name] >= 0.8 for name in NAMES)


def weights(model: nn.Module, part: str = "") -> dict[str, torch.Tensor]:
    """Copies of the tensors of a model whose names hold some text."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if part in name}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
