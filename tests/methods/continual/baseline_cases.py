"""Trainers of the baselines on the tiny task, and the parts of one step for slow references."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from tasks import arguments, forget_set, retain_set, scoring_set

from gs_lora_peft.methods import get_method
from gs_lora_peft.training import ForgettingTrainer


def trainer_of(method: Any, model: Any, folder: Any, **changes: Any) -> ForgettingTrainer:
    settings = {"num_train_epochs": 6, "learning_rate": 5e-3, "weight_decay": 0.0, **changes}
    data = {"forget_dataset": forget_set(), "retain_dataset": retain_set(), "eval_dataset": scoring_set()}
    return ForgettingTrainer(model, arguments(folder, method, **settings), method=method, **data)


def scores_after(method: Any, model: Any, folder: Any, **changes: Any) -> tuple[float, float]:
    """Acc_f and Acc_r after a training; both are 1 before."""
    trainer = trainer_of(method, model, folder, **changes)
    trainer.train()
    scores = trainer.evaluate()
    return scores["eval_acc_forget"], scores["eval_acc_retain"]


@dataclass
class Step:
    """One step of a method: its loss, and in float64 what a reference needs."""

    loss: torch.Tensor
    now: torch.Tensor  # logits (2·B, C) of the model that trains
    before: torch.Tensor  # and of the model before all tasks
    labels: torch.Tensor
    drawn: torch.Tensor  # other labels for the half to forget
    trainer: ForgettingTrainer
    original: Any
    inputs: dict[str, torch.Tensor]

    @property
    def half(self) -> int:
        return len(self.labels) // 2


def one_step(name: str, model: Any, folder: Any, begin: bool = True, then: Any = None, **fields: Any) -> Step:
    """A step of weights that have moved from where they were, at random."""
    original = copy.deepcopy(model)
    trainer = trainer_of(get_method(name, **fields), model, folder)
    inputs = next(iter(trainer.get_train_dataloader()))
    method = trainer.method
    if begin:
        method.on_train_begin(trainer.args, trainer.state, trainer.control)
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in trainer.trained.parameters:
            # Far enough for distances that float32 resolves; lora_B is 0 before.
            weight += (0.5 if trainer.trained.adapter else 0.05) * torch.randn_like(weight)
    if then is not None:
        then(method)
    output = trainer.task_objective.training_step(trainer.model.train(), inputs)
    torch.manual_seed(2)
    loss = method.loss(trainer.model, inputs, output)
    torch.manual_seed(2)
    count = len(inputs["labels"]) // 2
    kept = trainer.roles.retain
    drawn = torch.tensor([kept[index] for index in torch.randint(len(kept), (count,)).tolist()])
    with torch.no_grad():
        before = original.eval()(pixel_values=inputs["pixel_values"]).logits
    now = output.logits.detach().double()
    return Step(loss, now, before.double(), inputs["labels"], drawn, trainer, original, inputs)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """By its definition, one sample after another."""
    chances = [torch.exp(row - row.max()) / torch.exp(row - row.max()).sum() for row in logits]
    surprises = [-torch.log(row[label]) for row, label in zip(chances, labels.tolist(), strict=True)]
    return torch.stack(surprises).mean().item()


def probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    powers = torch.exp(logits / temperature)
    return powers / powers.sum(1, keepdim=True)


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """Mean KL(teacher ‖ student) of rows of probabilities."""
    return (teacher * (teacher / student).log()).sum().item() / len(teacher)
