"""Forgetting people: a ViT on the Yale faces, four requests of eight people, and sparsity against H.

    python examples/benchmarks/yale_faces.py tasks DATA
    python examples/benchmarks/yale_faces.py sweep DATA --size base
    python examples/benchmarks/yale_faces.py one DATA --settings '{"forget_bound": 7.28}'

DATA is the folder with `train.parquet` and `test.parquet` of the Extended Yale Face Database B (32×32 crops). `tasks`
scores on the test split, with the library's defaults. `sweep` and `one` do not use the test split: they hold out a
quarter of the training split, pre-train and forget on the rest, and score the first request on the held-out part.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from transformers import ViTForImageClassification, set_seed
from yale import accuracy, load_faces, pretrained_vit, with_shifts

from gs_lora_peft import (
    ContinualForgetter,
    ForgetRequest,
    GSLoraConfig,
    GSLoraTrainer,
    GSLoraTrainingArguments,
    split_dataset,
)
from gs_lora_peft.data import train_validation_split
from gs_lora_peft.ledger import format_table

# The order of the reference run (seed 1337): the last eight people are forgotten first.
ORDER = [
    32, 14, 31, 8, 4, 18, 28, 29, 27, 7, 1, 15, 5, 0, 35, 9, 17, 26, 25, 16, 2, 30, 20, 13, 3, 11, 37, 33, 6, 22, 12,
    19, 36, 24, 21, 10, 23, 34,
]  # fmt: skip
REQUESTS = [ORDER[30:], ORDER[22:30], ORDER[14:22], ORDER[6:14]]
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
REFITTED = (0.3, 0.4, 0.5, 0.6, 0.8)  # smaller ones drop no group in a third of the run


def tasks(data: str, work: Path, size: str) -> None:
    """Carries out four requests one after another, with the augmentation of pre-training."""
    dataset = load_faces(data)
    model = pretrained_vit(dataset, work / size, size)
    print(f"base model: test accuracy {100 * accuracy(model, dataset['test']):.1f} %")
    start = time.perf_counter()
    dataset["train"] = with_shifts(dataset["train"])
    args = GSLoraTrainingArguments(str(work / "tasks"), disable_tqdm=True)
    forgetter = ContinualForgetter(model, dataset, work / "tasks", args=args)
    forgetter.run([ForgetRequest(people) for people in REQUESTS])
    print(format_table(forgetter.ledger))
    print(f"{time.perf_counter() - start:.0f} s")


def one_run(base: Path, fit: Dataset, held_out: Dataset, **settings) -> dict:
    """Carries out the first request with other settings; returns scores on the held-out part."""
    args = GSLoraTrainingArguments(str(base / "work"), disable_tqdm=True, logging_strategy="no", **settings)
    set_seed(args.seed)
    model = get_peft_model(ViTForImageClassification.from_pretrained(base), GSLoraConfig())
    split = split_dataset(fit, forget=REQUESTS[0])
    trainer = GSLoraTrainer(model, args, forget_dataset=split.forget, retain_dataset=split.retain)
    before = trainer.score(held_out)
    start = time.perf_counter()
    trainer.train()
    after = trainer.score(held_out, before["acc_forget"])
    return {
        "settings": settings,
        "zero_group_ratio": trainer.groups.zero_group_ratio(),
        **{name: after[name] for name in ("h_mean", "acc_retain", "acc_forget")},
        "acc_retain_before": before["acc_retain"],
        "seconds": time.perf_counter() - start,
    }


def held_out_part(data: str, work: Path, size: str) -> tuple[Path, Dataset, Dataset]:
    """Returns a model trained on three quarters of the training split, these, and the held-out quarter."""
    dataset = load_faces(data)
    fit, held_out = train_validation_split(dataset["train"], "label", 0.25, seed=0)
    folder = work / f"{size}_fit"
    model = pretrained_vit(DatasetDict(train=fit), folder, size)
    print(f"base model: accuracy on the held-out part {100 * accuracy(model, held_out):.1f} %", flush=True)
    return folder, fit, held_out


def sweep(data: str, work: Path, size: str, settings: dict) -> None:
    """Varies the sparsity weight, with sparsity to the end and with the surviving groups refitted."""
    base, fit, held_out = held_out_part(data, work, size)
    selection = GSLoraTrainingArguments.sparsity_until_epoch
    for weight, until in [*((weight, None) for weight in WEIGHTS), *((weight, selection) for weight in REFITTED)]:
        row = one_run(base, fit, held_out, sparsity_weight=weight, sparsity_until_epoch=until, **settings)
        print(json.dumps(row), flush=True)
        with open(work / f"sweep_{size}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def one(data: str, work: Path, size: str, settings: dict) -> None:
    """Carries out the first request with the given settings."""
    print(json.dumps(one_run(*held_out_part(data, work, size), **settings)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tasks", "sweep", "one"])
    parser.add_argument("data", help="folder with train.parquet and test.parquet")
    parser.add_argument("--work", type=Path, default=Path("runs/yale"), help="folder for models and results")
    parser.add_argument("--size", choices=["base", "small"], default="base", help="width 128 or 64")
    parser.add_argument("--settings", type=json.loads, default={}, help="training arguments as JSON, not for `tasks`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "tasks":
        tasks(options.data, options.work, options.size)
    else:
        {"one": one, "sweep": sweep}[options.what](options.data, options.work, options.size, options.settings)
