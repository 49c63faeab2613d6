"""Cost of a detector's training step against the stock Trainer with the same LoRA on the same images.

    python examples/benchmarks/speed_detection.py DATA

The RT-DETR of pretrain_bccd.py and a DETR of 6 + 6 layers, random weights, on 16 images of BCCD at 256×192; DATA is a
folder with `train.parquet` and `test.parquet`, or a Hub id. The stock step is the model's own loss over all
annotations, without denoising queries and losses of earlier layers, which GS-LoRA does not use either. Both train in
turns; ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from pretrain_bccd import small_detector, small_processor
from protocol import Settings, load_data
from transformers import (
    ConvNextConfig,
    DetrConfig,
    DetrForObjectDetection,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gs_lora_peft import GSLoraConfig, GSLoraTrainer, GSLoraTrainingArguments, find_ffn_blocks, split_dataset
from gs_lora_peft.data import DetectionCollator, prepare_boxes

HALF, STEPS, WARMUP = 8, 8, 2
FORGET = 2  # the category to forget


class Clock(TrainerCallback):
    """Seconds of each step after the first few."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > WARMUP:
            self.seconds.append(time.perf_counter() - self.start)


def rt_detr() -> Any:
    model = small_detector(["Platelets", "RBC", "WBC"])
    model.config.num_denoising = model.model.config.num_denoising = 0
    model.config.auxiliary_loss = False
    return model


def detr() -> Any:
    backbone = ConvNextConfig(hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 2, 1], out_features=["stage3"])
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, num_labels=3, d_model=128,
        encoder_ffn_dim=512, decoder_ffn_dim=512, encoder_attention_heads=4, decoder_attention_heads=4,
        auxiliary_loss=False,
    )  # fmt: skip
    return DetrForObjectDetection(config)


def images(data: str) -> tuple[Dataset, Dataset]:
    """Loads images, half with objects to forget, half without."""
    train = prepare_boxes(load_data(data, Settings(kept=[]))["train"])
    split = split_dataset(train, forget=[FORGET], label_column="objects")
    return split.forget.select(range(HALF)), split.retain.select(range(HALF))


def trainers(base: Any, forget: Dataset, retain: Dataset, folder: str) -> dict[str, tuple[Trainer, Clock]]:
    """Returns the stock Trainer and the one of GS-LoRA, each with its own model."""
    common: dict[str, Any] = {
        "output_dir": folder, "max_steps": STEPS + WARMUP, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False, "learning_rate": 1e-4,
        "weight_decay": 0.05,
    }  # fmt: skip
    processor = small_processor()
    clocks = {"stock": Clock(), "gs_lora": Clock()}
    paths = [path for block in find_ffn_blocks(base()).values() for path in block]
    tied = {"tie_word_embeddings": False}  # stock PEFT refuses detectors with tied heads
    plain = base()
    plain.config.update(tied)
    stock = Trainer(
        get_peft_model(plain, LoraConfig(r=8, lora_alpha=1, target_modules=paths)),
        TrainingArguments(per_device_train_batch_size=2 * HALF, **common),
        train_dataset=concatenate_datasets([retain, forget]),
        data_collator=DetectionCollator(processor),
        callbacks=[clocks["stock"]],
    )
    ours = GSLoraTrainer(
        get_peft_model(base(), GSLoraConfig(r=8)),
        GSLoraTrainingArguments(per_device_train_batch_size=HALF, sparsity_weight=1e-6, **common),
        forget_dataset=forget,
        retain_dataset=retain,
        forget_classes=[FORGET],
        label_column="objects",
        processing_class=processor,
        callbacks=[clocks["gs_lora"]],
    )
    return {"stock": (stock, clocks["stock"]), "gs_lora": (ours, clocks["gs_lora"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.parquet and test.parquet, or a Hub id")
    parser.add_argument("--rounds", type=int, default=3, help="how often both train in turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    forget, retain = images(options.data)
    for base in (rt_detr, detr):
        with tempfile.TemporaryDirectory() as folder:
            both = trainers(base, forget, retain, folder)
            for _ in range(options.rounds):
                for trainer, _ in both.values():
                    trainer.train()
        step = {name: statistics.median(clock.seconds) for name, (_, clock) in both.items()}
        stock, ours = step["stock"], step["gs_lora"]
        print(f"{base.__name__}: {stock:.3f} s a stock step, {ours:.3f} s a step of GS-LoRA, {ours / stock:.2f}×")


if __name__ == "__main__":
    main()
