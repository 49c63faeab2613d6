"""The Yale faces as tensors, and a Vision Transformer trained on them from scratch (shared by the benchmarks)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Array3D, DatasetDict, Features, load_dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

# The layout of the reference face model: 32×32, patch 4, width 128, depth 6, 8 heads of 16, MLP 512.
SIZES = {"base": {"hidden_size": 128, "intermediate_size": 512}, "wide": {"hidden_size": 256, "intermediate_size": 1024}}


def load_faces(folder: str | Path) -> DatasetDict:
    """Grey images in [0, 1], each minus its mean and divided by its standard deviation + 1e-3, repeated to 3 channels."""
    files = {split: str(Path(folder) / f"{split}.parquet") for split in ("train", "test")}
    dataset = load_dataset("parquet", data_files=files)

    def standardise(row: dict) -> dict:
        image = np.asarray(row["image"], dtype=np.float32) / 255
        image = (image - image.mean()) / (image.std() + 1e-3)
        return {"pixel_values": np.repeat(image[None], 3, axis=0), "label": row["label"]}

    features = Features({"pixel_values": Array3D((3, 32, 32), "float32"), "label": dataset["train"].features["label"]})
    dataset = dataset.map(standardise, remove_columns=["image"], features=features, writer_batch_size=200)
    return dataset.with_format("torch")


def shift(batch: list[dict]) -> dict[str, torch.Tensor]:
    """Collate with random shifts of up to 2 pixels and mirroring: 42 images a person are few."""
    images = torch.stack([row["pixel_values"] for row in batch])
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    views = []
    for image in padded:
        y, x = torch.randint(0, 5, (2,)).tolist()
        view = image[:, y : y + 32, x : x + 32]
        views.append(view.flip(-1) if torch.rand(()) < 0.5 else view)
    return {"pixel_values": torch.stack(views), "labels": torch.stack([row["label"] for row in batch])}


def pretrained_vit(dataset: DatasetDict, folder: str | Path, size: str = "base", epochs: int = 60, seed: int = 1337):
    """Train once, then read from `folder`."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        model = ViTForImageClassification(
            ViTConfig(
                image_size=32,
                patch_size=4,
                num_hidden_layers=6,
                num_attention_heads=8,
                hidden_dropout_prob=0.1,
                num_labels=dataset["train"].features["label"].num_classes,
                **SIZES[size],
            )
        )
        args = TrainingArguments(
            output_dir=str(folder / "work"),
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=1e-3 if size == "base" else 5e-4,
            weight_decay=0.05,
            warmup_steps=100,
            lr_scheduler_type="cosine",
            label_smoothing_factor=0.1,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            seed=seed,
        )
        Trainer(model, args, train_dataset=dataset["train"], data_collator=shift).train()
        model.save_pretrained(folder)
    return ViTForImageClassification.from_pretrained(folder).eval()


@torch.no_grad()
def accuracy(model, dataset) -> float:
    """Fraction of a split that is classified right."""
    pixel_values, labels = dataset[:]["pixel_values"], dataset[:]["label"]
    hits = [(model(pixel_values=x).logits.argmax(-1) == y) for x, y in zip(pixel_values.split(128), labels.split(128), strict=True)]
    return torch.cat(hits).float().mean().item()
