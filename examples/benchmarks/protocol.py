"""The papers' protocol from a YAML file: several tasks, several seeds, one table.

    python examples/benchmarks/protocol.py examples/benchmarks/faces/yale_full.yaml --model face --data DATA

The file names how many classes each task leaves, how much data a task sees, the adapter and the training; what its
keys mean is said in `Settings`. MODEL and DATA are Hub ids or local folders. Results and runs go to a new folder,
`--work`. Nothing is chosen on the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import DatasetDict, load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments
from gs_lora_peft.data import align_labels, class_order, continual_protocol, train_validation_split
from gs_lora_peft.data.classes import label_names
from gs_lora_peft.metrics import continual_forgetting_scores
from gs_lora_peft.sequence.scoring import predict_classes

SCORES = ("acc_retain", "acc_forget", "acc_old", "acc_missing")


@dataclass
class Settings:
    """One row of the papers' tables."""

    kept: list[int]  # classes left after each task; the order of the classes is that of the papers' code
    training: dict[str, Any] = field(default_factory=dict)  # GSLoraTrainingArguments
    per_task: dict[str, list] = field(default_factory=dict)  # training arguments with one value for each task
    adapter: dict[str, Any] = field(default_factory=dict)  # GSLoraConfig
    model: dict[str, Any] = field(default_factory=dict)  # what the configuration of the model is changed to
    image_column: str = "image"
    label_column: str = "label"
    test_split: str = "test"
    dataset_config_name: str | None = None
    train_fraction: float = 1.0  # of each class, drawn by the seed
    replay_ratio: float = 1.0
    shots: int | None = None
    missing: int = 0  # so many of the classes that stay to the end have no training data
    published: dict[str, Any] = field(default_factory=dict)  # what the papers report, in percent
    ours: dict[str, Any] = field(default_factory=dict)  # the same, for whoever has run it

    def arguments(self, task: int, **others: Any) -> GSLoraTrainingArguments:
        """The training of one task."""
        own = {name: values[task] for name, values in self.per_task.items()}
        return GSLoraTrainingArguments(**(self.training | own | others))


def load_data(name: str, settings: Settings) -> DatasetDict:
    """Train and test split."""
    local = Path(name).is_dir() and any(Path(name).glob("*.parquet"))
    dataset = load_dataset("parquet", data_dir=name) if local else load_dataset(name, settings.dataset_config_name)
    if settings.image_column != "image":
        dataset = dataset.rename_column(settings.image_column, "image")
    return DatasetDict(train=dataset["train"], test=dataset[settings.test_split])


def without_margin(forgetter: ContinualForgetter, entry: Any) -> dict[str, float]:
    """The scores of a task as evaluation without the head's margin gives them; nothing for other heads."""
    config = forgetter.model.config
    if not getattr(config, "margin_at_eval", False):
        return {}
    config.margin_at_eval = False
    try:
        recipe = forgetter.recipe
        answers = predict_classes(forgetter.model, forgetter.eval_dataset, recipe.args, recipe.data_collator)
    finally:
        config.margin_at_eval = True
    old = [c for other in forgetter.ledger.active_tasks if other.number < entry.number for c in other.classes]
    missing = entry.missing_classes or []
    scores = continual_forgetting_scores(
        *answers, forget_classes=entry.classes, old_classes=old, missing_classes=missing
    )
    return {f"{name}_without_margin": scores[name] for name in SCORES if scores[name] is not None}


def run(settings: Settings, model_name: str, data_name: str, folder: Path, seed: int) -> list[dict[str, Any]]:
    """All tasks with one seed: scores, active groups, steps and seconds of each."""
    dataset = load_data(data_name, settings)
    model = AutoModelForImageClassification.from_pretrained(model_name, **settings.model)
    names = label_names(dataset["train"], settings.label_column)
    if names and model.config.label2id and set(names) <= set(model.config.label2id):
        dataset = align_labels(dataset, settings.label_column, model.config.label2id)
    if settings.train_fraction < 1:
        held_out = 1 - settings.train_fraction
        dataset["train"], _ = train_validation_split(dataset["train"], settings.label_column, held_out, seed)
    # The classes of the data in the order of their ids: a head may know more.
    classes = sorted(dataset["train"].unique(settings.label_column))
    tasks = [[classes[i] for i in task] for task in continual_protocol(len(classes), settings.kept)]
    staying = [classes[i] for i in class_order(len(classes))]
    common = {"seed": seed, "disable_tqdm": True, "output_dir": str(folder)}
    forgetter = ContinualForgetter(
        model,
        dataset,
        folder,
        config=GSLoraConfig(**settings.adapter),
        args=settings.arguments(0, **common),
        label_column=settings.label_column,
        processing_class=AutoImageProcessor.from_pretrained(model_name),
        replay_ratio=settings.replay_ratio,
        shots=settings.shots,
        missing_classes=staying[: settings.missing],
    )
    rows = []
    for number, task in enumerate(tasks):
        forgetter.recipe.args = settings.arguments(number, **common)
        start = time.perf_counter()
        entry = forgetter.forget(ForgetRequest(task))
        seconds = time.perf_counter() - start
        after, before = entry.scores["after"], entry.scores["before"]
        rows.append(
            {
                "seed": seed,
                "task": number,
                "h_mean": after["h_mean"],
                **{f"{name}_before": before[name] for name in SCORES if before.get(name) is not None},
                **{name: after[name] for name in SCORES if after.get(name) is not None},
                **without_margin(forgetter, entry),
                "zero_groups": 1 - len(entry.groups["active"]) / entry.groups["total"],
                "steps": entry.sizes["steps"],
                "seconds": seconds,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def format_means(rows: list[dict[str, Any]]) -> str:
    """Means over seeds in percent, one line for each task and one for all."""
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in ("seed", "task")]
    lines = ["task  " + "  ".join(names)]
    for task in [*sorted({row["task"] for row in rows}), None]:
        chosen = [row for row in rows if task in (row["task"], None)]
        cells = []
        for name in names:
            values = [row[name] for row in chosen if name in row]
            scale = 1 if name in ("steps", "seconds") else 100
            cells.append(f"{scale * np.mean(values):.2f}".rjust(len(name)) if values else "–".rjust(len(name)))
        lines.append(f"{'mean' if task is None else task:<4}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file")
    parser.add_argument("--model", required=True, help="image classifier: Hub id or folder")
    parser.add_argument("--data", required=True, help="data set: Hub id or folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--work", type=Path, default=Path("runs/protocol"), help="where runs and results go")
    parser.add_argument("--settings", type=json.loads, default={}, help="other settings that win, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="training arguments that win, as JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    if options.work.exists():
        parser.error(f"{options.work} exists; expected a new folder. Give another one as --work.")
    torch.set_num_threads(options.threads)
    settings = Settings(**(yaml.safe_load(options.file.read_text(encoding="utf-8")) | options.settings))
    settings.training |= options.training
    all_rows = []
    for seed in options.seeds:
        all_rows += run(settings, options.model, options.data, options.work / f"seed_{seed}", seed)
    (options.work / "results.json").write_text(json.dumps(all_rows, indent=1))
    print(format_means(all_rows))
