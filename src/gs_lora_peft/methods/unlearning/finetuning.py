"""Training on the samples to keep alone, plainly or towards a sparse model (L1-sparse)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative, NotNegativeWhole, check_fields
from ...errors import InvalidInputError
from ...objectives import ObjectiveOutput
from ...training import GSLoraTrainingArguments, Method, steps_per_epoch


@dataclass(kw_only=True)
class Finetune(Method):
    """Trains on the samples to keep and waits for the others to be forgotten by themselves.

    Minimises CE(D_r), as in https://arxiv.org/abs/2304.04934 (its "FT"). It relies on catastrophic forgetting: with
    small learning rates the classes stay, and it is the baseline that shows this. Costs nothing more than the joint
    forward, whose half to forget has no effect. It has no hyper-parameters.

    Raises:
        InvalidInputError: At the first step, if the model is not a classifier.
    """

    name = "finetune"
    title = "fine-tuning on the kept data, https://arxiv.org/abs/2304.04934"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.01,
        "num_train_epochs": 10,
        "weight_decay": 5e-4,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        return F.cross_entropy(*self.retain_half(inputs, output))


@dataclass(kw_only=True)
class L1Sparse(Finetune):
    r"""Trains on the samples to keep while a penalty prunes weights that they do not need.

    Minimises CE(D_r) + γ_t·‖θ‖₁ with γ_t = α·(1 − t/(E − n)) in epoch t = 0, 1, … of E, and 0 in the last n epochs
    (https://arxiv.org/abs/2304.04934). θ are the weights that train, without biases and the scales of normalisations,
    which hold no knowledge of single classes. The matrices of an adapter would shrink towards the model that still
    knows the classes, so that whole weights have to train. Costs one pass over the weights a step.

    Args:
        alpha (`float`, *optional*, defaults to 5e-4):
            α, at least 0. (The argument of the public code defaults to 0.2, shared with other methods.)
        no_l1_epochs (`int`, *optional*, defaults to 0):
            n, at least 0 and below the number of epochs.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether the penalty is on all parameters that train, also biases and normalisations, as in the public code.

    Raises:
        InvalidInputError: If a value is out of range, or adapters are in the model; at the first step, if the model
            is not a classifier.
    """

    name = "l1_sparse"
    trains = "weights"
    title = "L1-sparse, https://arxiv.org/abs/2304.04934"
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (1e-5, 1e-4, 5e-4)}

    alpha: NotNegative = 5e-4
    no_l1_epochs: NotNegativeWhole = 0
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, args: GSLoraTrainingArguments) -> None:
        super().check(args)
        if args.max_steps <= 0 and 0 < args.num_train_epochs <= self.no_l1_epochs:
            raise InvalidInputError(
                "no_l1_epochs",
                self.no_l1_epochs,
                f"fewer than the {args.num_train_epochs:g} epochs of the training, or the penalty never acts",
                "Lower it, or raise num_train_epochs.",
            )

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        self.gamma = self._gamma(state.global_step // steps_per_epoch(args, train_dataloader), state.num_train_epochs)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        loss = super().loss(model, inputs, output)
        if not self.gamma:
            return loss
        weights = [w for w in self.trainer.trained.parameters if self.official_compat or w.dim() > 1]
        return loss + self.gamma * torch.stack([weight.abs().sum(dtype=torch.float32) for weight in weights]).sum()

    def _gamma(self, epoch: int, epochs: int) -> float:
        sparse_epochs = epochs - self.no_l1_epochs
        return self.alpha * (1 - epoch / sparse_epochs) if epoch < sparse_epochs else 0.0
