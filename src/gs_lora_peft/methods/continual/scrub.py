"""SCRUB: the student disobeys its teacher on the samples to forget and obeys it on the others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative, NotNegativeWhole, Share
from ...objectives import ObjectiveOutput
from ...training import steps_per_epoch
from .base import PUBLISHED, Baseline, Positive, softened_kl

AVERAGE_FILE = "scrub_average.safetensors"


@dataclass(kw_only=True)
class SCRUB(Baseline):
    """Moves away from the original model on the samples to forget, and stays with it on the others, by turns.

    A max step maximises KL_T(forget half); a min step minimises γ · CE(retain half, y) + α · KL_T(retain half). KL_T
    is T² · KL(softmax(z' / T) ‖ softmax(z / T)), and z' are the logits of the model before all requests. With T = 1
    this is the paper (https://arxiv.org/abs/2302.09880, eq. 3); its code has T and T². The paper takes max steps in
    one epoch over the samples to forget, then min steps in one over the others, `max_epochs` times, and min steps in
    further epochs. Batches are joint here: the second, fourth, … epoch, `max_epochs` times, begins with one pass of
    max steps over the samples to forget, and all other steps are min steps. The first epoch has none, because where
    the student is its teacher, KL has no slope. So train for more than 2 · `max_epochs` epochs.

    A max step has no bound: too many of them, or too large a learning rate, harm the classes to keep.

    Cost: one more forward of one half.

    Args:
        retain_weight (`float`, *optional*, defaults to 0.99):
            γ, at least 0.
        distillation_weight (`float`, *optional*, defaults to 0.001):
            α, at least 0.
        temperature (`float`, *optional*, defaults to 2):
            T, above 0.
        max_epochs (`int`, *optional*, defaults to 5):
            Passes of max steps, at least 0.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "scrub"
    title = "SCRUB, https://arxiv.org/abs/2302.09880"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4, "weight_decay": 5e-4}
    space: ClassVar = {"max_epochs": (1, 3, 5), "distillation_weight": (0.001, 0.1, 0.5)}

    retain_weight: NotNegative = 0.99
    distillation_weight: NotNegative = 0.001
    temperature: Positive = 2.0
    max_epochs: NotNegativeWhole = 5
    _disobeys: bool = field(init=False, repr=False, compare=False, default=False)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        epoch, step = divmod(state.global_step, steps_per_epoch(args, train_dataloader))
        pairs = self.trainer.get_total_train_batch_size(self.trainer.args) // 2
        one_pass = -(-len(self.trainer.train_dataset.forget) // pairs)
        self._disobeys = epoch % 2 == 1 and epoch // 2 < self.max_epochs and step < one_pass

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        logits, labels = (self.forget_half if self._disobeys else self.retain_half)(inputs, output)
        teacher = self.original_logits(model, inputs, "forget" if self._disobeys else "retain")
        distance = softened_kl(logits, teacher, self.temperature)
        if self._disobeys:
            return -distance
        return self.retain_weight * F.cross_entropy(logits, labels) + self.distillation_weight * distance


@dataclass(kw_only=True)
class SCRUBS(SCRUB):
    """[`SCRUB`] with smoothing: the weights stay near their own average.

    Adds p · Σ_j ‖θ_j − θ̄_j‖ to the loss of every step, over the tensors j that train, with the Frobenius norm
    (smoothed gradient descent-ascent, https://github.com/ojus1/SmoothedGradientDescentAscent, as the GS-LoRA papers
    use it). The average is that of the public code, θ̄ ← (1 − β) · θ̄ + β · θ. It starts from the weights before the
    task and moves at the end of every epoch; the public code moves it every ten. With an adapter θ are its factors,
    and p has to be smaller: near the teacher KL is flat, and the pull p is not, so that nothing moves away.

    Cost: as [`SCRUB`], and one more copy of the weights, which checkpoints hold, too.

    Args:
        retain_weight (`float`, *optional*, defaults to 0.99):
            As in [`SCRUB`].
        distillation_weight (`float`, *optional*, defaults to 0.001):
            As in [`SCRUB`].
        temperature (`float`, *optional*, defaults to 2):
            As in [`SCRUB`].
        max_epochs (`int`, *optional*, defaults to 5):
            As in [`SCRUB`].
        smoothing (`float`, *optional*, defaults to 0.1):
            p, at least 0. The papers take 0.05 and 0.1.
        average_rate (`float`, *optional*, defaults to 0.1):
            β, in (0, 1].

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "scrub_s"
    title = "SCRUB-S, a baseline of https://arxiv.org/abs/2403.11530"
    space: ClassVar = {"max_epochs": (1, 3, 5), "smoothing": (0.001, 0.01, 0.1)}

    smoothing: NotNegative = 0.1
    average_rate: Share = 0.1
    _average: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)
    _step: int = field(init=False, repr=False, compare=False, default=0)  # of the last move of the average

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._average, self._step = [start.float().clone() for start in self.trainer.trained.start], 0

    @torch.no_grad()
    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        # At the end of the epoch before. A training that is resumed there may have moved the average or not.
        if state.global_step % steps_per_epoch(args, train_dataloader) or state.global_step == self._step:
            return
        self._step = state.global_step
        current = [weight.detach().float() for weight in self.trainer.trained.parameters]
        torch._foreach_lerp_(self._average, current, self.average_rate)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        loss = super().loss(model, inputs, output)
        pairs = zip(self.trainer.trained.parameters, self._average, strict=True)
        # The slope of the norm at 0, where training starts, is 0.
        norms = [torch.linalg.vector_norm(weight.float() - average).to(loss.device) for weight, average in pairs]
        return loss + self.smoothing * torch.stack(norms).sum()

    def save(self, folder: str) -> None:
        if self.trainer.args.should_save:
            tensors = {str(index): average.cpu().contiguous() for index, average in enumerate(self._average)}
            tensors["step"] = torch.tensor(self._step)
            save_file(tensors, os.path.join(folder, AVERAGE_FILE))

    def load(self, folder: str) -> None:
        tensors = load_file(os.path.join(folder, AVERAGE_FILE))
        self._step = int(tensors["step"])
        weights = self.trainer.trained.parameters
        self._average = [tensors[str(index)].to(weight.device) for index, weight in enumerate(weights)]
