"""Trains a Vision Transformer on 100 classes of Tiny ImageNet at 32×32 from scratch, as the model for protocol.py.

    python examples/benchmarks/pretrain_tiny_imagenet.py DATA MODEL --size small --epochs 10     # minutes on a CPU
    accelerate launch examples/benchmarks/pretrain_tiny_imagenet.py DATA MODEL --size full --epochs 200   # a GPU

DATA is a folder with `train.parquet` and `test.parquet` (`image`, `label`), or a Hub id. The test split is scored only
once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from protocol import Settings, load_data
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from gs_lora_peft.data import ImageCollator, label_names

SIZES = {
    "small": {"patch_size": 8, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "heads": 4},
    "full": {"patch_size": 4, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 9, "heads": 6},
}


class Augmented:
    """Collates rows to images with random flips and shifts by up to 4 pixels."""

    def __init__(self, collate: ImageCollator):
        self.collate = collate

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        images = batch["pixel_values"]
        flip = torch.rand(len(images)) < 0.5
        images[flip] = images[flip].flip(-1)
        padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
        corners = torch.randint(0, 9, (len(images), 2)).tolist()
        height, width = images.shape[-2:]
        cut = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)]
        return {**batch, "pixel_values": torch.stack(cut)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("model", type=Path, help="folder to write")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--images_per_class", type=int, help="number of training images of each class; default: all")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    options = parser.parse_args()

    dataset = load_data(options.data, Settings(kept=[]))
    names = label_names(dataset["train"], "label")
    train = dataset["train"]
    if options.images_per_class is not None:
        labels = np.asarray(train["label"])
        chosen = [np.flatnonzero(labels == number)[: options.images_per_class] for number in range(len(names))]
        train = train.select(np.sort(np.concatenate(chosen)))
    size = dict(SIZES[options.size])
    config = ViTConfig(
        image_size=32,
        num_attention_heads=size.pop("heads"),
        **size,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    torch.manual_seed(1337)
    model = ViTForImageClassification(config)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    collate = ImageCollator(processor)
    args = TrainingArguments(
        output_dir=str(options.model) + "_work",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.05,
        warmup_steps=0.05,
        label_smoothing_factor=0.1,
        lr_scheduler_type="cosine",
        bf16=torch.cuda.is_available(),
        dataloader_num_workers=options.workers,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=1337,
    )
    trainer = Trainer(model, args, train_dataset=train, data_collator=Augmented(collate))
    trainer.train()
    if trainer.is_world_process_zero():
        model.save_pretrained(options.model)
        processor.save_pretrained(options.model)
    trainer.data_collator = collate
    answers = trainer.predict(dataset["test"])
    print(f"test accuracy {100 * np.mean(answers.predictions.argmax(-1) == answers.label_ids):.1f} %")


if __name__ == "__main__":
    main()
