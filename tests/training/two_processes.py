"""The same runs in one process and in several. Started by `torchrun`, it writes down what each process saw."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file
from tasks import (
    adapter_state,
    arguments,
    differences,
    forget_set,
    knowing_vit,
    lower_zero,
    peft_vit,
    retain_set,
    scoring_set,
    trainable,
    two_adapters,
)
from torch.nn import functional as F

from gs_lora_peft import NonFiniteLossError
from gs_lora_peft.compat import is_shard
from gs_lora_peft.data import PairedSampler
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer

GLOBAL_BATCH = 8
DYING = {
    "sparsity_weight": 1.35,
    "sparsity_until_epoch": 2.75,
    "learning_rate": 2e-2,
    "num_train_epochs": 4,
    "lr_scheduler_type": "constant",
}
SHORT = {"max_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


class WatchedTrainer(ForgettingTrainer):
    """Writes down which samples each micro-batch held."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, list[float]]] = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            prints = inputs["pixel_values"].double().sum(dim=(1, 2, 3)).tolist()
            half = len(prints) // 2
            self.batches.append({"retain": prints[:half], "forget": prints[half:]})
        return super().compute_loss(model, inputs, *args, **kwargs)


def broken(dataset: Dataset, row: int) -> Dataset:
    """One sample's pixels are NaN."""
    pixels = torch.stack(list(dataset[:]["pixel_values"]))
    pixels[row] = torch.nan
    rows = Dataset.from_dict({"pixel_values": pixels.tolist(), "label": dataset[:]["label"].tolist()})
    return rows.with_format("torch")


def bounds_between_processes() -> dict[str, float]:
    """Bounds that two processes would judge differently by their own means, at the first step."""
    pairs = list(PairedSampler(len(retain_set(8)), len(forget_set(5)), GLOBAL_BATCH, seed=42))[:GLOBAL_BATCH]
    rows = forget_set(5)[[pair[1] for pair in pairs]]
    with torch.no_grad():
        logits = peft_vit()(pixel_values=rows["pixel_values"]).logits
    losses = F.cross_entropy(logits, rows["label"], reduction="none")
    means = losses.view(2, -1).mean(dim=1)
    middle, (low, high) = means.mean(), means.sort().values
    return {"hinge closed": float(low + middle) / 2, "hinge open": float(high + middle) / 2}


def settings_of(name: str) -> dict[str, Any]:
    bounds = bounds_between_processes()
    return {
        "plain": {"logging_strategy": "steps", "logging_steps": 1},
        "accumulating": {"logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 2},
        "hinge closed": {"max_steps": 1, "forget_bound": bounds["hinge closed"], **PLAIN_SGD},
        "hinge open": {"max_steps": 1, "forget_bound": bounds["hinge open"], **PLAIN_SGD},
        "zero groups": DYING,
        "evaluated": {"eval_strategy": "epoch", "learning_rate": 2e-2, "forget_weight": 1.0, "num_train_epochs": 8},
        "prototypes": {
            "logging_strategy": "steps",
            "logging_steps": 1,
            "prototype_forget_weight": 0.3,
            "prototype_retain_weight": 0.2,
        },
        "distillation": {"logging_strategy": "steps", "logging_steps": 1, "distillation_weight": 0.7},
        "split batches": {**SHORT, "accelerator_config": {"split_batches": True}},
        "dispatched batches": {**SHORT, "accelerator_config": {"dispatch_batches": True}},
        "uneven batches": {
            "max_steps": 4,
            "eval_strategy": "epoch",
            "per_device_eval_batch_size": 5,
            "accelerator_config": {"even_batches": False},
        },
        "sharded": {"logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 2},
        "sharded, zero groups": DYING,
        "fine-tuning": {"logging_strategy": "steps", "logging_steps": 1, "method": "ffn", "learning_rate": 1e-3},
    }[name]


RUNS = (
    "plain",
    "accumulating",
    "prototypes",
    "distillation",
    "hinge closed",
    "hinge open",
    "zero groups",
    "evaluated",
    "split batches",
    "dispatched batches",
    "uneven batches",
    "sharded",
    "sharded, zero groups",
    "fine-tuning",
)

# What `accelerate launch` puts into the environment for examples/accelerate/fsdp2.yaml; see test_distributed.py.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}

WEIGHTS_TRAIN = "now weights of the model itself train"


BROKEN = ("retain", "forget", "neither")


def trainer_of(model: Any, folder: Path, processes: int, method: str = "gs_lora", **settings: Any) -> WatchedTrainer:
    split = settings.get("accelerator_config", {}).get("split_batches", False)
    sharers = settings.get("gradient_accumulation_steps", 1) * (1 if split else processes)
    per_process = GLOBAL_BATCH // sharers
    args = arguments(folder, method, per_device_train_batch_size=per_process, **settings)
    sets = {"forget_dataset": forget_set(5), "retain_dataset": retain_set(8)}
    return WatchedTrainer(model, args, method=get_method(method), eval_dataset=scoring_set(), **sets)


def run(name: str, folder: Path, processes: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One run: what was logged and seen, and the weights it ends with."""
    with sharding(name):
        return run_here(name, folder, processes)


def run_here(name: str, folder: Path, processes: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if name == "fine-tuning":
        print(WEIGHTS_TRAIN, file=sys.stderr, flush=True)
    model = knowing_vit() if name == "fine-tuning" else peft_vit()
    trainer = trainer_of(model, folder, processes, **settings_of(name))
    if name == "accumulating":
        trainer.score(scoring_set())  # evaluation must not keep training from synchronising gradients
    trainer.train()
    history = trainer.state.log_history
    logged = ("loss", "retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy", "grad_norm")
    logged += {"prototypes": ("retain_distance", "forget_distance"), "distillation": ("distillation",)}.get(name, ())
    return {
        "logs": [{key: entry[key] for key in logged} for entry in history if "retain_loss" in entry],
        "scores": [entry["eval_h_mean"] for entry in history if "eval_h_mean" in entry],
        "zero": [] if name == "fine-tuning" else trainer.trained.groups.zero_groups(),
        "batches": trainer.batches,
        "steps": trainer.state.global_step,
        "shards": sum(is_shard(parameter) for parameter in model.parameters()),
    }, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def resume(build: Any, folder: Path, processes: int, steps: tuple[int, ...], **settings: Any) -> dict[str, Any]:
    """What differs between a run and the same run resumed from some of its steps."""

    def start(where: str, **more: Any):
        torch.manual_seed(5 + PartialState().process_index)
        model = build()
        logged = {"logging_strategy": "steps", "logging_steps": 3}
        return model, trainer_of(model, folder / where, processes, **logged, **settings, **more)

    model, through = start("through", save_strategy="steps", save_steps=1)
    through.train()
    final, found = adapter_state(model), {}
    for step in steps:
        model, resumed = start("resumed")
        resumed.train(resume_from_checkpoint=str(folder / "through" / f"checkpoint-{step}"))
        same_batches = resumed.batches == through.batches[-len(resumed.batches) :]
        found[str(step)] = {
            "different": differences(final, adapter_state(model)),
            "same batches": same_batches,
            "same logs": losses_of(resumed) == losses_of(through) != [],
            "trains": sorted(trainable(model)),
        }
    return found


def losses_of(trainer: WatchedTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "retain_loss" in row]


def break_another_term(trainer: WatchedTrainer) -> None:
    """In the second process, while the losses of both halves are finite."""
    whole = trainer.objective.training_step

    def step(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        if PartialState().process_index == 1:
            output.loss = output.loss + torch.tensor(torch.nan)
        return output

    trainer.objective.training_step = step


def broken_run(half: str, folder: Path, processes: int) -> dict[str, Any]:
    """A NaN that only one of the processes gets to see."""
    model = peft_vit()
    trainer = trainer_of(model, folder, processes)
    if half == "neither":
        break_another_term(trainer)
    else:
        data = trainer.train_dataset
        setattr(data, half, broken(getattr(data, half), 3))
    before = adapter_state(model)
    try:
        trainer.train()
    except NonFiniteLossError as error:
        step = trainer.state.global_step
        saved = (folder / "last-good" / "adapter_model.safetensors").is_file()
        return {
            "error": str(error),
            "stopped": error.step,
            "quantities": list(error.quantities),
            "step": step,
            "saved": saved,
            "moved": len(differences(before, adapter_state(model))),
        }
    return {}


def refused(folder: Path) -> list[Any]:
    """The option with which weights of the model itself, as shards, are refused."""
    try:
        with sharding("sharded"):
            trainer_of(knowing_vit(), folder, 2, method="ffn")
    except InvalidInputError as error:
        return [error.name, error.value]
    return []


def refused_cache(folder: Path, processes: int) -> list[Any]:
    """What each process says of the demand to keep states, for which only the second has no room."""
    model = lower_zero(peft_vit())
    trainer = trainer_of(model, folder, processes, prefix_cache="on")
    if PartialState().process_index == 1:
        trainer.args.prefix_cache_mib = 1e-5
    try:
        trainer.train()
    except InvalidInputError as error:
        return [error.name, error.value, error.expected, trainer.state.global_step]
    return []


@contextmanager
def sharding(name: str) -> Iterator[None]:
    """Makes the environment that of `accelerate launch` with FSDP 2 for runs of that name."""
    if not name.startswith("sharded"):
        yield
        return
    os.environ.update(FSDP2)
    try:
        yield
    finally:
        for key in FSDP2:
            del os.environ[key]


def main(folder: Path) -> None:
    gc.freeze()  # each training collects garbage, which need not look at what was imported
    state = PartialState(cpu=True)
    processes, rank = state.num_processes, state.process_index
    report: dict[str, Any] = {"processes": processes, "backend": torch.distributed.get_backend()}
    for name in RUNS:
        report[name], adapter = run(name, folder / name, processes)
        save_file(adapter, folder / f"{name}-{rank}.safetensors")
    report["resume"] = {
        "two adapters, dropout": resume(lambda: two_adapters(dropout=0.3), folder / "a", processes, (2, 4, 7)),
        "zero groups, average": resume(
            lambda: peft_vit("task_002"), folder / "b", processes, (6, 11, 12), ema_decay=0.7, **DYING
        ),
        "depth": resume(lambda: peft_vit(dropout=0.3), folder / "d", processes, (5, 8), depth_weight=1.0),
        "accumulating": resume(
            lambda: peft_vit(dropout=0.3), folder / "c", processes, (5, 8), gradient_accumulation_steps=2
        ),
    }
    with sharding("sharded"):
        report["resume"]["sharded"] = resume(lambda: peft_vit("task_002"), folder / "e", processes, (6, 11), **DYING)
    report["broken"] = {half: broken_run(half, folder / f"broken-{half}", processes) for half in BROKEN}
    report["refused"] = refused(folder / "refused")
    report["refused cache"] = refused_cache(folder / "cache", processes)
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
