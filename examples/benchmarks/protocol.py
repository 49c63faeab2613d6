"""The papers' protocol from a YAML file: several tasks, several seeds, one table.

    python examples/benchmarks/protocol.py examples/benchmarks/faces/yale_full.yaml --model face --data DATA

The file sets how many classes each task leaves, how much data a task sees, the adapter and the training; `Settings`
explains its keys. MODEL and DATA are Hub ids or local folders. Results and runs are written to a new folder, `--work`.
Nothing is chosen on the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import DatasetDict, load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraConfig, GSLoraTrainingArguments, split_dataset
from gs_lora_peft.data import (
    ImageCollator,
    align_known_labels,
    class_order,
    continual_protocol,
    label_names,
    train_validation_split,
)
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.methods import get_method
from gs_lora_peft.roles import ClassRoles
from gs_lora_peft.runs import predict
from gs_lora_peft.training import ForgettingTrainer, only_read

METHODS = ("gs_lora", "ffn")
CarryOut = Callable[[int], dict[str, float]]
SCORES = ("acc_retain", "acc_forget", "acc_old", "acc_missing")


@dataclass
class Settings:
    """One row of the papers' tables."""

    kept: list[int]  # number of classes left after each task, in the order of classes of the papers' code
    training: dict[str, Any] = field(default_factory=dict)  # GSLoraTrainingArguments
    per_task: dict[str, list] = field(default_factory=dict)  # training arguments with one value for each task
    adapter: dict[str, Any] = field(default_factory=dict)  # GSLoraConfig
    model: dict[str, Any] = field(default_factory=dict)  # changes to the configuration of the model
    image_column: str = "image"
    label_column: str = "label"
    test_split: str = "test"
    dataset_config_name: str | None = None
    train_fraction: float = 1.0  # share of each class, sampled with the seed
    replay_ratio: float = 1.0
    shots: int | None = None
    method: str = "gs_lora"  # or "ffn": plain fine-tuning of the feed-forward Linears with the same losses
    missing: int = 0  # number of classes without training data, of those that stay to the end
    published: dict[str, Any] = field(default_factory=dict)  # results of the papers, in percent
    ours: dict[str, Any] = field(default_factory=dict)  # results of a run, in percent

    def __post_init__(self):
        wrong = {name: len(values) for name, values in self.per_task.items() if len(values) != len(self.kept)}
        if wrong:
            expected = f"one value for each of the {len(self.kept)} tasks"
            raise InvalidInputError("number of values in `per_task`", wrong, expected)
        if self.kept and not 0 <= self.missing < self.kept[-1]:
            expected = f"fewer than the {self.kept[-1]} classes that stay to the end"
            raise InvalidInputError("missing", self.missing, expected)
        if self.method not in METHODS:
            raise InvalidInputError("method", self.method, f"one of {METHODS}")

    def arguments(self, task: int, **others: Any) -> GSLoraTrainingArguments:
        """Returns the training of one task."""
        own = {name: values[task] for name, values in self.per_task.items()}
        read = only_read(self.training | own, get_method(self.method).reads)
        return GSLoraTrainingArguments(**(read | others))


def read_settings(file: Path, changes: dict[str, Any], training: dict[str, Any]) -> Settings:
    """Reads a file. `changes` replace whole keys, and `training` replaces single arguments for every task."""
    settings = Settings(**(yaml.safe_load(file.read_text(encoding="utf-8")) | changes))
    settings.training |= training
    settings.per_task = {name: values for name, values in settings.per_task.items() if name not in training}
    return settings


def load_data(name: str, settings: Settings) -> DatasetDict:
    """Loads the train and test split."""
    local = Path(name).is_dir() and any(Path(name).glob("*.parquet"))
    dataset = load_dataset("parquet", data_dir=name) if local else load_dataset(name, settings.dataset_config_name)
    if settings.image_column != "image":
        dataset = dataset.rename_column(settings.image_column, "image")
    return DatasetDict(train=dataset["train"], test=dataset[settings.test_split])


@dataclass
class Protocol:
    """One seed of a protocol: a fresh model, its data, and the tasks."""

    model: Any
    processor: Any
    dataset: DatasetDict
    tasks: list[list[int]]  # ids of the classes to forget
    missing: list[int]  # ids of the classes to keep without training data

    def old_classes(self, task: int) -> list[int]:
        """Returns the classes that the tasks before this one forgot."""
        return [c for earlier in self.tasks[:task] for c in earlier]


def prepare(settings: Settings, model_name: str, data_name: str, seed: int) -> Protocol:
    """Loads the base model and the data of one seed."""
    dataset = load_data(data_name, settings)
    model = AutoModelForImageClassification.from_pretrained(model_name, **settings.model)
    dataset = align_known_labels(dataset, settings.label_column, model.config.label2id)
    names = label_names(dataset["train"], settings.label_column)
    if names and model.config.num_labels != len(names):
        raise InvalidInputError(
            "classes of the model",
            model.config.num_labels,
            f"the {len(names)} classes of the data",
            "Their names differ, so they cannot be matched. Use a model that was trained on this data.",
        )
    if settings.train_fraction < 1:
        held_out = 1 - settings.train_fraction
        dataset["train"], _ = train_validation_split(dataset["train"], settings.label_column, held_out, seed)
    # The classes of the data in the order of their ids; the head may have more.
    classes = sorted(dataset["train"].unique(settings.label_column))
    tasks = [[classes[i] for i in task] for task in continual_protocol(len(classes), settings.kept)]
    staying = [classes[i] for i in class_order(len(classes))]
    processor = AutoImageProcessor.from_pretrained(model_name)
    return Protocol(model, processor, dataset, tasks, staying[: settings.missing])


class Scorer:
    """Scores the live model on the test split, with the margin of the head and, if it has one, without."""

    def __init__(self, protocol: Protocol, args: GSLoraTrainingArguments, label_column: str):
        self.protocol, self.args = protocol, args
        self.collate = ImageCollator(protocol.processor, label_column=label_column)

    def __call__(self, task: int, acc_forget_before: float | None = None) -> dict[str, float]:
        """Returns the scores by the roles of the classes in a task."""
        config = self.protocol.model.config
        scores = self._by_role(task, acc_forget_before)
        if at_eval := getattr(config, "margin_at_eval", False):
            config.margin_at_eval = False
            try:
                without = self._by_role(task, None)
            finally:
                config.margin_at_eval = at_eval
            scores |= {f"{name}_without_margin": without[name] for name in SCORES if name in without}
        return scores

    def _by_role(self, task: int, acc_forget_before: float | None) -> dict[str, float]:
        protocol = self.protocol
        found = predict(protocol.model, protocol.dataset["test"], self.args, self.collate)
        present = found.by_class()
        roles = ClassRoles.of(protocol.tasks[task], protocol.old_classes(task), protocol.missing, present=present)
        scores = found.by_role(roles, acc_forget_before)
        return {name: scores[name] for name in ("h_mean", *SCORES) if scores[name] is not None}


def run(settings: Settings, model_name: str, data_name: str, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Carries out all tasks with one seed; returns scores, zero groups, steps, and seconds with scoring."""
    protocol = prepare(settings, model_name, data_name, seed)
    common = {"seed": seed, "disable_tqdm": True, "output_dir": str(folder)}
    score = Scorer(protocol, settings.arguments(0, **common), settings.label_column)
    carry_out = with_gs_lora(protocol, settings, folder, common)
    if settings.method == "ffn":
        carry_out = with_ffn_finetuning(protocol, settings, common)
    rows = []
    for task in range(len(protocol.tasks)):
        before = score(task)
        start = time.perf_counter()
        facts = carry_out(task)
        row = {"seed": seed, "task": task, "seconds": time.perf_counter() - start, **facts}
        row |= {f"{name}_before": before[name] for name in SCORES if name in before}
        rows.append(row | score(task, before["acc_forget"]))
        print(json.dumps(rows[-1]), flush=True)
        with open(folder.parent / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def with_gs_lora(protocol: Protocol, settings: Settings, folder: Path, common: dict[str, Any]) -> CarryOut:
    """Returns a function that carries out a task with [`ContinualForgetter`]."""
    forgetter = ContinualForgetter(
        protocol.model,
        protocol.dataset,
        folder,
        config=GSLoraConfig(**settings.adapter),
        label_column=settings.label_column,
        processing_class=protocol.processor,
        replay_ratio=settings.replay_ratio,
        shots=settings.shots,
        missing_classes=protocol.missing,
    )

    def carry_out(task: int) -> dict[str, float]:
        forgetter.recipe.args = settings.arguments(task, **common)
        entry = forgetter.forget(ForgetRequest(protocol.tasks[task]))
        zero_groups = 1 - len(entry.groups["active"]) / entry.groups["total"]
        return {"zero_groups": zero_groups, "steps": entry.sizes["steps"]}

    return carry_out


def with_ffn_finetuning(protocol: Protocol, settings: Settings, common: dict[str, Any]) -> CarryOut:
    """Returns a function that carries out a task with `FFNFinetuning`, on the same data."""

    def carry_out(task: int) -> dict[str, float]:
        old = protocol.old_classes(task)
        split = split_dataset(
            protocol.dataset["train"],
            forget=protocol.tasks[task],
            old=old,
            missing=protocol.missing,
            label_column=settings.label_column,
            replay_ratio=settings.replay_ratio,
            shots=settings.shots,
            seed=common["seed"],
        )
        set_seed(common["seed"])
        trainer = ForgettingTrainer(
            protocol.model,
            settings.arguments(task, **common),
            method=get_method("ffn"),
            forget_dataset=split.forget,
            retain_dataset=split.retain,
            old_classes=old,
            label_column=settings.label_column,
            processing_class=protocol.processor,
        )
        trainer.train()
        return {"zero_groups": 0.0, "steps": trainer.state.global_step}

    return carry_out


def format_means(rows: list[dict[str, Any]]) -> str:
    """Returns means over seeds in percent, a line for each task and one for all."""
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
    parser.add_argument("--work", type=Path, help="folder for runs and results; default: runs/NAME of the file")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="settings that replace those of the file, as JSON"
    )
    parser.add_argument(
        "--training", type=json.loads, default={}, help="training arguments that replace those of the file, as JSON"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    work = options.work or Path("runs", options.file.stem)
    if work.exists():
        parser.error(f"{work} exists; expected a new folder. Give another one as --work.")
    torch.set_num_threads(options.threads)
    settings = read_settings(options.file, options.settings, options.training)
    work.mkdir(parents=True)
    all_rows = []
    for seed in options.seeds:
        all_rows += run(settings, options.model, options.data, work / f"seed_{seed}", seed)
    print(format_means(all_rows))
