"""Trains a small RT-DETR on blood cells (BCCD) from scratch on a CPU, as the model for forget_detection.py.

    python examples/benchmarks/pretrain_bccd.py DATA MODEL --threads 2

DATA is a folder with `train.parquet` and `test.parquet` (`image`, `objects`), or a Hub id. The test split is scored
only once, at the end. With `--without WBC` the detector never sees a box of this category: it trains on the same
images without these boxes, with a head of the same size, and serves an audit as the reference.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import Settings, load_data
from score_detector import average_precisions, format_scores
from torch import Tensor
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    Trainer,
    TrainingArguments,
)

from gs_lora_peft.data import DetectionCollator, prepare_boxes, remove_classes

Item = dict[str, Any]  # `pixel_values` (3, H, W) and `labels` of one image


def small_detector(names: Sequence[str]) -> RTDetrForObjectDetection:
    """Returns a detector of 3 million parameters: a ResNet of one block a stage, 1 encoder and 3 decoder layers."""
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        downsample_in_bottleneck=False,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        # The default freezes the BatchNorm of the backbone as the identity, which would normalise nothing.
        freeze_backbone_batch_norms=False,
        encoder_hidden_dim=128,
        encoder_in_channels=[64, 128, 256],
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=128,
        decoder_in_channels=[128] * 3,
        decoder_ffn_dim=256,
        decoder_layers=3,
        decoder_attention_heads=4,
        num_queries=60,
        num_denoising=30,
        anchor_image_size=None,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    return RTDetrForObjectDetection(config)


def small_processor() -> RTDetrImageProcessor:
    """Returns a processor for images of 256×192, normalised to the colours of a blood smear."""
    colours = {"image_mean": [0.65, 0.6, 0.65], "image_std": [0.2, 0.2, 0.2]}
    return RTDetrImageProcessor(size={"height": 192, "width": 256}, do_normalize=True, **colours)


def prepared(rows: Any, collate: DetectionCollator) -> list[Item]:
    """Decodes and resizes every image once, which otherwise costs a tenth of the training on two cores."""
    items = []
    for row in rows:
        batch = collate([row])
        items.append({"pixel_values": batch["pixel_values"][0], "labels": batch["labels"][0]})
    return items


def flipped(items: Sequence[Item]) -> dict[str, Any]:
    """Collates a batch with random flips in both directions; blood cells have no orientation."""
    turned = [_flip(item, torch.rand(2) < 0.5) for item in items]
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in turned]),
        "labels": [item["labels"] for item in turned],
    }


def _flip(item: Item, sides: Tensor) -> Item:
    pixel_values, boxes = item["pixel_values"], item["labels"]["boxes"].clone()
    for side, turn in enumerate(sides.tolist()):
        if turn:
            pixel_values = pixel_values.flip(-1 - side)
            boxes[:, side] = 1 - boxes[:, side]  # (cx, cy, w, h) as shares of the image
    return {"pixel_values": pixel_values, "labels": {**item["labels"], "boxes": boxes}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("model", type=Path, help="folder to write")
    parser.add_argument("--without", nargs="+", metavar="CATEGORY", help="categories whose boxes are removed before")
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    dataset = prepare_boxes(load_data(options.data, Settings(kept=[])))
    names = dataset["train"].features["objects"]["category"].feature.names
    shown = dataset["train"]
    if options.without:
        shown = remove_classes(shown, options.without, "objects")
    torch.manual_seed(1337)
    model = small_detector(names)
    processor = small_processor()
    collate = DetectionCollator(processor, num_labels=len(names))
    args = TrainingArguments(
        output_dir=str(options.model) + "_work",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=8,
        learning_rate=options.learning_rate,
        weight_decay=1e-4,
        warmup_steps=50,
        lr_scheduler_type="cosine",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=1337,
    )
    trainer = Trainer(model, args, train_dataset=prepared(shown, collate), data_collator=flipped)
    start = time.perf_counter()
    trainer.train()
    print(f"trained in {(time.perf_counter() - start) / 60:.0f} minutes")
    if trainer.is_world_process_zero():
        model.save_pretrained(options.model)
        processor.save_pretrained(options.model)
    print(format_scores(average_precisions(model, processor, dataset["test"]), model.config.id2label))


if __name__ == "__main__":
    main()
