"""Methods of forgetting in one table: accuracy, time, and what attacks get back, beside retrained models.

    python examples/benchmarks/audit_methods.py --methods gs_lora lora salun --seeds 0 1 2 --work runs/audit_methods

The digits demo (forget.py without arguments): every method carries out the same requests, then every attack tries to get
the digits back. `--held_out` judges on held-out training images instead of the test split: use it to choose settings.
A stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from digits import load_digits, pretrained_vit, retrained_vits
from transformers import set_seed

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainingArguments, audit_models, split_dataset
from gs_lora_peft.audit import AuditReport
from gs_lora_peft.data import train_validation_split
from gs_lora_peft.io import write_json_atomic
from gs_lora_peft.methods import get_method
from gs_lora_peft.reports import Table
from gs_lora_peft.roles import ClassRoles
from gs_lora_peft.runs import predict
from gs_lora_peft.training import ForgettingTrainer

REQUESTS = [[3], [7], [0, 1]]


@dataclass
class Entry:
    """One method with its settings."""

    method: str = "gs_lora"
    training: dict[str, Any] = field(default_factory=dict)  # GSLoraTrainingArguments
    weights: bool = False  # trains the model's own weights


METHODS = {
    "gs_lora": Entry(),
    "lora": Entry(training={"sparsity": "none"}),
    "random_labels": Entry("random_labels"),
    "salun": Entry("salun", {"learning_rate": 1e-3}, weights=True),
}


def forgotten_by(
    name: str, entry: Entry, base: Any, dataset: DatasetDict, seed: int, folder: Path
) -> tuple[Any, float]:
    """Carries out all requests; returns the bare model and the seconds of a task."""
    model = copy.deepcopy(base)
    args = GSLoraTrainingArguments(str(folder), seed=seed, disable_tqdm=True, **entry.training)
    start = time.perf_counter()
    if entry.weights:
        for number, classes in enumerate(REQUESTS):
            old = [c for earlier in REQUESTS[:number] for c in earlier]
            split = split_dataset(dataset["train"], forget=classes, old=old, seed=seed)
            data = {"forget_dataset": split.forget, "retain_dataset": split.retain, "old_classes": old}
            set_seed(seed)
            ForgettingTrainer(model, args, method=get_method(entry.method), **data).train()
        model.eval()
    else:
        forgetter = ContinualForgetter(model, dataset, folder, args=args, method=entry.method)
        forgetter.run([ForgetRequest(classes) for classes in REQUESTS])
        model = forgetter.model
    return model, (time.perf_counter() - start) / len(REQUESTS)


def scored(model: Any, dataset: DatasetDict, folder: Path) -> dict[str, float]:
    """Returns Acc_r and Acc_f of all requests."""
    forget = [c for classes in REQUESTS for c in classes]
    args = GSLoraTrainingArguments(str(folder), disable_tqdm=True)
    found = predict(model, dataset["test"], args, lambda rows: torch.utils.data.default_collate(_named(rows)))
    scores = found.by_role(ClassRoles.of(forget, present=range(10)))
    return {"acc_retain": scores["acc_retain"], "acc_forget": scores["acc_forget"]}


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"pixel_values": row["pixel_values"], "labels": row["label"]} for row in rows]


def rows_of(report: AuditReport) -> dict[str, dict[str, float]]:
    """Returns, for each attack and setting, the place with the largest excess over the reference."""
    worst: dict[str, dict[str, float]] = {}
    for found in report.comparisons():
        if found.attack.judged == "shown":
            continue
        key = f"{found.attack.title}, {found.setting}"
        values = {
            "original": found.original.value,
            "forgotten": found.forgotten.value,
            "reference": found.reference,
            "excess": found.excess,
        }
        if key not in worst or worst[key]["excess"] < found.excess:
            worst[key] = values
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--references", type=int, default=3, help="number of retrained models")
    parser.add_argument("--training", type=json.loads, default={}, help="training arguments for all, as JSON")
    parser.add_argument("--quick", action="store_true", help="attacks with a small budget")
    parser.add_argument("--held_out", action="store_true", help="judge on held-out training images")
    parser.add_argument("--work", type=Path, default=Path("runs/audit_methods"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = load_digits()
    base = pretrained_vit(dataset)
    if options.held_out:
        train, held_out = train_validation_split(dataset["train"], "label", 0.25)
        dataset = DatasetDict(train=train, test=held_out)
    forget = [c for classes in REQUESTS for c in classes]
    references = retrained_vits(dataset, forget, options.references)
    table: list[list[Any]] = []
    for name in options.methods:
        entry = METHODS[name]
        entry.training |= options.training
        found = [_one_seed(name, entry, base, dataset, references, seed, options) for seed in options.seeds]
        table.append([name, *(float(np.mean([row[key] for row in found])) for key in found[0])])
    columns = ["method", *found[0]]
    print(Table(columns, table).to_markdown())


def _one_seed(
    name: str, entry: Entry, base: Any, dataset: DatasetDict, references: list[Any], seed: int, options: Any
) -> dict[str, float]:
    folder = options.work / f"{name}-{seed}"
    if not (done := folder / "row.json").is_file():
        model, seconds = forgotten_by(name, entry, base, dataset, seed, folder)
        model.save_pretrained(folder / "model")
        write_json_atomic(done, {"seconds": seconds, **scored(model, dataset, folder)})
    row = json.loads(done.read_text(encoding="utf-8"))
    model = type(base).from_pretrained(folder / "model")
    report = audit_models(
        base, model, dataset, [c for classes in REQUESTS for c in classes], reference=references,
        quick=options.quick, seed=seed, folder=folder / "audit",
    )  # fmt: skip
    write_json_atomic(folder / "audit.json", report.to_dict())
    gap = report.gap
    return {**row, "gap": gap.points if gap else float("nan"), **{k: v["excess"] for k, v in rows_of(report).items()}}


if __name__ == "__main__":
    main()
