"""LoTUS: the earlier model's own answers, as uncertain as the accuracy on the samples to forget asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import Number, check_fields
from ...io import parse_json, write_json_atomic
from ...objectives import ObjectiveOutput, logits_of
from ...training import Method, own_batches

_FILE = "lotus.json"


@dataclass(kw_only=True)
class LoTUS(Method):
    r"""Smooths the answers to the samples to forget, the more the better they are still recognised.

    Minimises the mean over both halves of −Σ_c t_c·log p_c (https://arxiv.org/abs/2503.18314, CVPR 2025). With z the
    logits of the model before the task and g Gumbel noise, drawn anew at every step, t is the one-hot vector of
    argmax(z + g) for a sample to keep, and softmax((z + g)/τ) for one to forget. Before each epoch,
    τ = exp(α·(Acc_f − target)), with the accuracy of the model on D_f: at first the answer is uniform, and it
    approaches that of the earlier model as the target comes near. Training ends after the epoch that reaches it;
    otherwise τ = 1 would teach the class again. Costs a forward over the joint batch more, and one over D_f an epoch.
    The source takes 30 % of D_r.

    Args:
        alpha (`float`, *optional*, defaults to 32.0):
            α, in (0, 80]. The source has 32 for classes and 2 for random samples.
        target (`float`, *optional*, defaults to 0.0):
            Accuracy on D_f of a model that never saw it, in [0, 1]: 0 for whole classes, that on unseen data for
            random samples.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether training ends only 0.01 below the target, as in the public code, where it cannot end for classes.

    Raises:
        InvalidInputError: If a value is out of range; at the first step, if the model is not a classifier.
    """

    name = "lotus"
    title = "LoTUS, https://arxiv.org/abs/2503.18314"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-4,
        "num_train_epochs": 10,
        "weight_decay": 5e-4,
        "lr_scheduler_type": "constant",
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (2.0, 8.0, 32.0)}

    alpha: Annotated[Number, Field(gt=0, le=80, description="a number in (0, 80]")] = 32.0
    target: Annotated[Number, Field(ge=0, le=1, description="a number in [0, 1]")] = 0.0
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._set_temperature()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        distance = self._set_temperature()
        if distance <= (-0.01 if self.official_compat else 0.0):
            control.should_training_stop = True

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        (kept, _), (gone, _) = self.retain_half(inputs, output), self.forget_half(inputs, output)
        with_noise = F.gumbel_softmax(self.earlier_logits(model, inputs, "retain"), hard=True)
        smoothed = F.gumbel_softmax(self.earlier_logits(model, inputs, "forget"), tau=self.temperature)
        return (F.cross_entropy(kept, with_noise.argmax(1)) + F.cross_entropy(gone, smoothed)) / 2

    def save(self, folder: str) -> None:
        # In the middle of an epoch, the weights it was computed from are gone.
        if self.trainer.args.should_save:
            write_json_atomic(Path(folder) / _FILE, {"temperature": self.temperature})

    def load(self, folder: str) -> None:
        self.temperature = float(parse_json((Path(folder) / _FILE).read_bytes())["temperature"])

    def _set_temperature(self) -> float:
        """Measures the accuracy on D_f, once an epoch, and returns its distance from the target."""
        distance = self._forget_accuracy() - self.target
        # Below e^-5 the answer is one-hot anyway; smaller values would overflow.
        self.temperature = math.exp(max(self.alpha * distance, -5.0))
        return distance

    @torch.no_grad()
    def _forget_accuracy(self) -> float:
        trainer, training = self.trainer, self.trainer.model.training
        counts = torch.zeros(2, device=trainer.args.device)
        trainer.model.eval()
        for batch in own_batches(trainer, [trainer.train_dataset.forget]):
            right = logits_of(trainer.model, batch).argmax(1) == batch["labels"]
            counts += torch.stack([right.sum(), right.new_tensor(len(right), dtype=torch.int64)])
        trainer.model.train(training)
        hits, total = trainer.global_sum(counts).tolist()
        return hits / total
