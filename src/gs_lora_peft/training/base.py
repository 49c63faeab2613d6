"""What every part of a trainer that forgets can rely on."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Trainer

from ..data.augmentation import Augmentation
from ..data.pairing import PairedDataset
from ..objectives import Objective
from .arguments import GSLoraTrainingArguments
from .meter import LossMeter
from .trained import Trained


class TaskTrainer(Trainer):
    """A Trainer with the data, the classes and the weights of one task; [`ForgettingTrainer`] is made of its parts.

    Attributes:
        trained ([`Trained`]): What trains.
        task_objective ([`Objective`]): What "forget" and "retain" mean.
        forget_classes, retain_classes, old_classes, missing_classes (`list[int]`): The role of every class.
        accuracy_forget_before (`dict[str, float]`): Acc_f (of a detector AP_f) before the task by evaluation set
            (`"eval"`, or `"eval_<name>"` for a dict of sets), in [0, 1]; Drop and H follow from it.
        meter ([`LossMeter`]): Running means for the logs.
    """

    args: GSLoraTrainingArguments
    model: nn.Module
    train_dataset: PairedDataset
    trained: Trained
    task_objective: Objective
    forget_classes: list[int]
    retain_classes: list[int]
    old_classes: list[int]
    missing_classes: list[int]
    accuracy_forget_before: dict[str, float]
    meter: LossMeter
    label_column: str
    has_boxes: bool
    augmentation: Augmentation | None
    ignore_keys_for_eval: list[str] | None

    def measure_before(self) -> None:
        """Acc_f before the task on each evaluation set."""
        raise NotImplementedError

    def global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    def global_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor, reduction="sum") if self.args.world_size > 1 else tensor
