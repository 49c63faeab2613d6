"""The Yale faces as tensors, and a Vision Transformer trained on them from scratch (shared by the benchmarks)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Array3D, Dataset, DatasetDict, Features, load_dataset
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

# "base" is the layout of the reference face model: 32×32, patch 4, width 128, depth 6, 8 heads of 16, MLP 512.
SIZES = {
    "base": {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 8},
    "small": {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4},
}


def load_faces(folder: str | Path) -> DatasetDict:
    """Loads grey images without illumination: logarithm minus local mean, unit variance, 3 channels."""
    files = {split: str(Path(folder) / f"{split}.parquet") for split in ("train", "test")}
    dataset = load_dataset("parquet", data_files=files)

    def normalise(row: dict) -> dict:
        image = torch.log(torch.from_numpy(np.asarray(row["image"], dtype=np.float32))[None] / 255 + 0.03)
        local = image
        for _ in range(2):
            local = F.avg_pool2d(F.pad(local, (3, 3, 3, 3), mode="replicate"), 7, 1)
        detail = image - local
        detail = 3 * torch.tanh(detail / (detail.std() + 1e-3) / 3)
        return {"pixel_values": detail.repeat(3, 1, 1).numpy(), "label": row["label"]}

    features = Features({"pixel_values": Array3D((3, 32, 32), "float32"), "label": dataset["train"].features["label"]})
    return dataset.map(normalise, remove_columns=["image"], features=features).with_format("torch")


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Shifts each image by up to 1 pixel, because there are only 42 images of each person."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    corners = torch.randint(0, 3, (len(padded), 2)).tolist()
    return torch.stack([image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, corners, strict=True)])


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    """Collates a batch with random shifts."""
    images = shifted(torch.stack([row["pixel_values"] for row in batch]))
    return {"pixel_values": images, "labels": torch.stack([row["label"] for row in batch])}


def with_shifts(dataset: Dataset) -> Dataset:
    """Returns the same samples, with a new shift each time they are read."""

    def transform(rows: dict) -> dict:
        if "pixel_values" in rows:
            rows["pixel_values"] = shifted(torch.from_numpy(np.asarray(rows["pixel_values"], dtype=np.float32)))
        return rows

    return dataset.with_transform(transform)


def pretrained_vit(dataset: DatasetDict, folder: str | Path, size: str = "base", epochs: int = 30, seed: int = 1337):
    """Trains a ViT once, then loads it from `folder`."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        num_labels = dataset["train"].features["label"].num_classes
        config = ViTConfig(
            image_size=32,
            patch_size=4,
            num_hidden_layers=6,
            num_labels=num_labels,
            initializer_range=0.06,
            **SIZES[size],
        )
        args = TrainingArguments(
            output_dir=str(folder / "work"),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=5e-4 if size == "base" else 1e-3,
            weight_decay=0.05,
            warmup_steps=100,
            lr_scheduler_type="cosine",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            seed=seed,
        )
        model = ViTForImageClassification(config)
        Trainer(model, args, train_dataset=dataset["train"], data_collator=collate).train()
        model.save_pretrained(folder)
    return ViTForImageClassification.from_pretrained(folder).eval()


@torch.no_grad()
def accuracy(model, dataset) -> float:
    """Returns the fraction of a split that is classified correctly."""
    batch = dataset[:]
    hits = model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["label"]
    return hits.float().mean().item()
