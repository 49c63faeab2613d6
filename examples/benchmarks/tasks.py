"""The cost of many tasks: of the ledger, of opening a run, of one more request, and of loading. Prints a table.

    python examples/benchmarks/tasks.py                      # 1,000 tasks that forgot 4,000 of 10,000 classes
    python examples/benchmarks/tasks.py --loading            # load_forgotten, ViT-B, 100 tasks, against bare reading

A tiny ViT with 10,000 classes and random adapters, in a temporary folder. Times are CPU seconds of this process
(`time.process_time`), with one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from peft import get_peft_model
from safetensors.torch import load
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from gs_lora_peft import (
    ContinualForgetter,
    ForgetRequest,
    ForgettingLedger,
    GSLoraConfig,
    GSLoraTrainingArguments,
    LoraGroups,
    export_lora,
    load_forgotten,
    weights_fingerprint,
)
from gs_lora_peft.adapters import model_identity
from gs_lora_peft.hub import write_composite
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import TaskEntry
from gs_lora_peft.runs import Recipe, library_versions

CONFIG = GSLoraConfig(r=2)


def tiny(names: list[str]) -> PreTrainedModel:
    """A ViT of one block that reads images of 8×8 pixels."""
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 8, "num_channels": 1, "hidden_size": 8, "intermediate_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 1}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return ViTForImageClassification(ViTConfig(**sizes, **layers, **labels)).eval()


def images(names: list[str], per_class: int) -> Dataset:
    """Images of one bright pixel."""
    labels = np.repeat(np.arange(len(names)), per_class)
    pixels = np.zeros((len(labels), 1, 8, 8), np.float32)
    pixels[:, 0, 0, 0] = labels / len(names)
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format("torch")


def arguments(folder: Path) -> GSLoraTrainingArguments:
    """Two steps of a training that writes nothing."""
    return GSLoraTrainingArguments(
        str(folder),
        use_cpu=True,
        max_steps=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=1000,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )


def make_run(folder: Path, model: PreTrainedModel, names: list[str] | None, tasks: int, each: int) -> list[str]:
    """Writes a run of tasks with random adapters, each of which forgot some classes; returns names not forgotten."""
    ledger = ForgettingLedger.create(folder, base_model=model_identity(model), label_names=names)
    settings = Recipe(CONFIG, arguments(folder), "label", None, data_collator=list).settings()
    adapted = get_peft_model(model, CONFIG)
    groups = LoraGroups(adapted)
    for number in range(tasks):
        for parameter in groups.parameters:
            torch.nn.init.normal_(parameter, std=1e-3)
        name = ledger.next_task_name()
        written = export_lora(adapted, folder / "tasks" / name)
        classes = list(range(number * each, (number + 1) * each))
        ledger.append(
            TaskEntry(
                name=name,
                request=ForgetRequest([names[c] for c in classes] if names else classes).to_dict(),
                classes=classes,
                class_names=[names[c] for c in classes] if names else None,
                started_at="2026-01-01T00:00:00Z",
                finished_at="2026-01-01T00:00:00Z",
                sizes={"forget": 1, "retain": 1, "steps": 1},
                settings=settings,
                versions=library_versions(),
                files={path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(written.iterdir())},
                groups={**groups.state(), "norms": dict(zip(groups.names, groups.norms().tolist(), strict=True))},
                scores={stage: {"acc_forget": 0.0, "acc_retain": 0.9} for stage in ("base", "before", "after")},
            )
        )
    adapted.unload()
    ledger.save()
    return (names or [])[tasks * each :]


def seconds(action: Callable[[], Any], rounds: int = 1) -> float:
    """Returns the fewest CPU seconds of some rounds."""
    timings = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        timings.append(time.process_time() - start)
    return min(timings)


def many_tasks(folder: Path, tasks: int, each: int, classes: int) -> None:
    """Shows what a run with many tasks costs."""
    names = [f"person_{index:05d}" for index in range(classes)]
    data = DatasetDict(train=images(names, 1), test=images(names, 1))
    start = time.process_time()
    left = make_run(folder, tiny(names), names, tasks, each)
    show("writing the run (no target)", time.process_time() - start)
    size = (folder / "forgetting.json").stat().st_size
    show(f"ForgettingLedger.load, {size / 1e6:.1f} MB", seconds(lambda: ForgettingLedger.load(folder), 3))
    ledger = ForgettingLedger.load(folder)
    show("ForgettingLedger.save", seconds(ledger.save, 3))
    show("load_forgotten, all adapters active", seconds(lambda: load_forgotten(tiny(names), folder)))
    show("load_forgotten(merge=True)", seconds(lambda: load_forgotten(tiny(names), folder, merge=True)))
    show("the merged adapter in the root", seconds(lambda: write_composite(ledger, folder)))
    opened: list[ContinualForgetter] = []

    def open_run() -> None:
        opened.append(ContinualForgetter(tiny(names), data, folder, config=CONFIG, args=arguments(folder)))

    show("ContinualForgetter opens the run", seconds(open_run))
    show("one more request of two steps", seconds(lambda: opened[0].forget(ForgetRequest(left[:each]))))
    wholly = folder.with_name("at-once")
    fresh = ContinualForgetter(tiny(names), data, wholly, config=CONFIG, args=arguments(wholly))
    show(
        f"one request for {tasks * each:,} classes",
        seconds(lambda: fresh.forget(ForgetRequest(names[: tasks * each]))),
    )


def loading(folder: Path, tasks: int) -> None:
    """Shows the cost of loading against reading, hashing and parsing the files, and the base's fingerprint."""

    def model() -> PreTrainedModel:
        torch.manual_seed(0)
        return ViTForImageClassification(ViTConfig(num_labels=200)).eval()

    make_run(folder, model(), None, tasks, 1)
    paths = sorted(path for path in (folder / "tasks").rglob("*") if path.is_file())

    def read() -> None:
        for path in paths:
            content = path.read_bytes()
            hashlib.sha256(content).digest()
            if path.suffix == ".safetensors":
                load(content)

    bare, loaded = [], []
    for _ in range(4):  # interleaved; the first round warms both up
        base = model()
        bare.append(seconds(read) + seconds(lambda base=base: weights_fingerprint(base)))
        loaded.append(seconds(lambda base=base: load_forgotten(base, folder)))
    ratio = min(loaded[1:]) / min(bare[1:])
    show("bare reading, hashing, parsing and fingerprint", min(bare[1:]))
    show(f"load_forgotten of {tasks} tasks, {ratio:.2f}×", min(loaded[1:]))


def show(what: str, took: float) -> None:
    print(f"{what:<60} {took:8.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loading", action="store_true", help="measure load_forgotten with a ViT-B instead")
    parser.add_argument("--tasks", type=int, help="number of tasks: by default 1000, with --loading 100")
    parser.add_argument("--classes", type=int, default=10_000, help="classes of the model")
    parser.add_argument("--each", type=int, default=4, help="classes that each task forgot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.loading:
            loading(Path(folder, "run"), options.tasks or 100)
        else:
            many_tasks(Path(folder, "run"), options.tasks or 1000, options.each, options.classes)


if __name__ == "__main__":
    main()
