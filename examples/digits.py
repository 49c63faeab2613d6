"""The default of forget.py: handwritten digits, and a small Vision Transformer pre-trained on them.

The 1,797 real images of 8×8 pixels come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate import PartialState
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from huggingface_hub import cached_assets_path
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from gs_lora_peft.io import staged_folder


def load_digits() -> DatasetDict:
    """Loads a train and test split (75 % / 25 %, stratified) with `pixel_values` in [-1, 1] and `label`."""
    digits = sklearn_digits()
    images = (digits.images / 8 - 1).astype(np.float32)[:, None]
    rows = train_test_split(np.arange(len(images)), test_size=0.25, stratify=digits.target, random_state=0)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=names)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"pixel_values": images[index], "label": digits.target[index]}, features=features
            ).with_format("torch")
            for split, index in zip(("train", "test"), rows, strict=True)
        }
    )


def pretrained_vit(dataset: DatasetDict, seed: int = 0) -> ViTForImageClassification:
    """Returns a ViT of 6 blocks and width 64 that is trained on all ten digits, from the Hugging Face assets cache."""
    folder = cached_assets_path("gs_lora_peft", namespace="examples", subfolder=f"digits-vit-{seed}")
    folder = folder / "model"
    complete = all((folder / name).is_file() for name in ("config.json", "model.safetensors"))
    # Every process must have checked the folder before one of them writes it.
    PartialState().wait_for_everyone()
    if not complete:
        torch.manual_seed(seed)
        labels = dataset["train"].features["label"].names
        model = ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=2,
                num_channels=1,
                hidden_size=64,
                num_hidden_layers=6,
                num_attention_heads=4,
                intermediate_size=256,
                initializer_range=0.06,
                id2label=dict(enumerate(labels)),
                label2id={name: index for index, name in enumerate(labels)},
            )
        )
        args = TrainingArguments(
            output_dir=str(folder.parent / "work"),
            num_train_epochs=40,
            per_device_train_batch_size=max(1, 64 // PartialState().num_processes),
            learning_rate=1e-3,
            weight_decay=0.05,
            warmup_steps=30,
            lr_scheduler_type="cosine",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            seed=seed,
        )
        Trainer(model, args, train_dataset=dataset["train"]).train()
        if PartialState().is_main_process:
            # The folder gets its name when it is complete.
            with staged_folder(folder) as staged:
                model.save_pretrained(staged)
        PartialState().wait_for_everyone()
    return ViTForImageClassification.from_pretrained(folder)
