"""Methods of forgetting in one table: accuracy, time, and what attacks get back, beside retrained models.

    PYTHONPATH=examples python examples/benchmarks/audit_methods.py --methods gs_lora deep --seeds 0 1 2

The digits demo (forget.py without arguments): every method carries out the same requests, then every attack tries to
get the digits back. The row `retrained` is one more retrained model under the same attacks: what luck does. A stopped
command goes on where it was.
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
from digits import RECIPE, load_digits, pretrained_vit
from transformers import set_seed

from gs_lora_peft import (
    ContinualForgetter,
    ForgetRequest,
    GSLoraTrainingArguments,
    audit_models,
    split_dataset,
)
from gs_lora_peft.audit import AuditReport, Comparison, retrain, retrained_models
from gs_lora_peft.io import write_json_atomic
from gs_lora_peft.methods import get_method
from gs_lora_peft.reports import Table
from gs_lora_peft.roles import ClassRoles
from gs_lora_peft.runs import predict
from gs_lora_peft.training import ForgettingTrainer, adapter_of_recipe

REQUESTS = [[3], [7], [0, 1]]
FORGET = [class_id for classes in REQUESTS for class_id in classes]


@dataclass
class Entry:
    """One method with its settings."""

    method: str = "gs_lora"
    training: dict[str, Any] = field(default_factory=dict)  # GSLoraTrainingArguments
    weights: bool = False  # trains the model's own weights


# The learning rate of SalUn is a usual one for whole weights; it was not searched.
METHODS = {
    "gs_lora": Entry(),
    "deep": Entry(training={"recipe": "deep"}),
    "lora": Entry(training={"sparsity": "none"}),
    "random_labels": Entry("random_labels"),
    "salun": Entry("salun", {"learning_rate": 1e-3}, weights=True),
    "retrained": Entry("retrained"),
}


def forgotten_by(entry: Entry, base: Any, dataset: DatasetDict, seed: int, folder: Path) -> tuple[Any, float]:
    """Carries out all requests; returns the bare model and the CPU seconds of a request, with scoring."""
    model = copy.deepcopy(base)
    args = GSLoraTrainingArguments(str(folder), seed=seed, disable_tqdm=True, **entry.training)
    start = time.process_time()
    if entry.method == "retrained":
        model = retrain(base, dataset["train"], FORGET, recipe=RECIPE, seed=10 + seed, disable_tqdm=True)
    elif entry.weights:
        for number, classes in enumerate(REQUESTS):
            old = [c for earlier in REQUESTS[:number] for c in earlier]
            split = split_dataset(dataset["train"], forget=classes, old=old, seed=seed)
            data = {"forget_dataset": split.forget, "retain_dataset": split.retain, "old_classes": old}
            set_seed(seed)
            ForgettingTrainer(model, args, method=get_method(entry.method), **data).train()
        model.eval()
    else:
        config = adapter_of_recipe(args.recipe)
        forgetter = ContinualForgetter(model, dataset, folder, config=config, args=args, method=entry.method)
        forgetter.run([ForgetRequest(classes) for classes in REQUESTS])
        model = forgetter.model
    return model, (time.process_time() - start) / len(REQUESTS)


def scored(model: Any, dataset: DatasetDict, folder: Path) -> dict[str, float]:
    """Returns Acc_r and Acc_f of all requests."""
    args = GSLoraTrainingArguments(str(folder), disable_tqdm=True)
    found = predict(model, dataset["test"], args, lambda rows: torch.utils.data.default_collate(_named(rows)))
    scores = found.by_role(ClassRoles.of(FORGET, present=range(10)))
    return {"Acc_r": 100 * scores["acc_retain"], "Acc_f": 100 * scores["acc_forget"]}


def _named(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"pixel_values": row["pixel_values"], "labels": row["label"]} for row in rows]


def figures_of(report: AuditReport) -> dict[str, tuple[float, float, float]]:
    """Returns original, reference and forgotten for each attack and setting, where the excess is largest."""
    worst: dict[str, Comparison] = {}
    for found in report.comparisons():
        key = f"{found.attack.title}, {found.setting}"
        if found.attack.judged != "shown" and (key not in worst or worst[key].excess < found.excess):
            worst[key] = found
    return {key: (found.original.value, found.reference, found.forgotten.value) for key, found in worst.items()}


def one_seed(
    name: str, base: Any, dataset: DatasetDict, references: list[Any], seed: int, options: argparse.Namespace
) -> dict[str, tuple[Any, Any, Any]]:
    """Returns the scores and figures of one method with one seed; each as original, reference and forgotten."""
    folder = options.work / f"{name}-{seed}"
    if not (done := folder / "row.json").is_file():
        model, seconds = forgotten_by(METHODS[name], base, dataset, seed, folder)
        model.save_pretrained(folder / "model")
        write_json_atomic(done, {"CPU seconds a request": seconds, **scored(model, dataset, folder)})
    model = type(base).from_pretrained(folder / "model")
    report = audit_models(
        base,
        model,
        dataset,
        FORGET,
        reference=references,
        quick=options.quick,
        seed=options.audit_seed,
        folder=options.work / "parts",
        disable_tqdm=True,
    )
    write_json_atomic(folder / "audit.json", report.to_dict())
    scores = json.loads(done.read_text(encoding="utf-8"))
    own = {key: (None, None, value) for key, value in scores.items()}
    gap = report.gap
    return {**own, "recovery gap": (None, None, gap.points if gap else None), **figures_of(report)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--references", type=int, default=3, help="number of retrained models")
    parser.add_argument("--audit_seed", type=int, default=0, help="seed of the attacks, the same for all models")
    parser.add_argument("--quick", action="store_true", help="attacks with a small budget")
    parser.add_argument("--work", type=Path, default=Path("runs/audit_methods"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = load_digits()
    base = pretrained_vit(dataset)
    references = list(
        retrained_models(base, dataset["train"], FORGET, options.references, recipe=RECIPE, seed=1, disable_tqdm=True)
    )
    found = {
        name: [one_seed(name, base, dataset, references, seed, options) for seed in options.seeds]
        for name in options.methods
    }
    rows = []
    for key in dict.fromkeys(key for of_seeds in found.values() for row in of_seeds for key in row):
        original, reference = next(iter(found.values()))[0][key][:2]
        means = [np.mean([row[key][2] for row in of_seeds]) for of_seeds in found.values()]
        rows.append([key, *(shown(value) for value in (original, reference, *means))])
    print(Table(["attack", "original", "reference", *options.methods], rows).to_markdown())


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
