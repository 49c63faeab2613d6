"""A tiny classifier that knows six classes, and a benchmark of a few seconds on it."""

from pathlib import Path

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from transformers import ViTConfig, ViTForImageClassification

from gs_lora_peft.benchmark import BenchmarkConfig

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["quokka", "axolotl", "okapi", "tapir", "numbat", "kiwi"]
AUDIT = {
    "attacks": ["answer", "centroid", "membership"],
    "references": 2,
    "controls": 1,
    "recipe": {"epochs": 3, "learning_rate": 3e-3, "batch_size": 16, "warmup": 2},
}


def rows(each, seed):
    """Every class has its own pattern, with noise."""
    patterns = np.random.default_rng(7).normal(size=(len(NAMES), 1, 4, 4))
    labels = np.arange(len(NAMES)).repeat(each)
    pixels = patterns[labels] + 0.3 * np.random.default_rng(seed).normal(size=(len(labels), 1, 4, 4))
    features = Features({"pixel_values": Array3D((1, 4, 4), "float32"), "label": ClassLabel(names=NAMES)})
    data = {"pixel_values": pixels.astype(np.float32), "label": labels}
    return Dataset.from_dict(data, features=features).with_format("torch")


def dataset():
    return DatasetDict(train=rows(12, 0), test=rows(6, 1))


def trained(data):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=4,
        patch_size=2,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    model = ViTForImageClassification(config)
    batch = {"pixel_values": data["train"][:]["pixel_values"], "labels": data["train"][:]["label"]}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def config(folder, **changes):
    given = {
        "output": str(folder / "out"),
        "settings": [{"name": "continual", "requests": [["quokka"], [1]]}],
        "methods": ["gs_lora", "random_labels"],
        "seeds": [0],
        "fixed_training": {"max_steps": 6, "per_device_train_batch_size": 12},
        "audit": AUDIT | {"cache": str(folder / "retrained")},
        "processes": 1,
    }
    return BenchmarkConfig.of(given | changes)
