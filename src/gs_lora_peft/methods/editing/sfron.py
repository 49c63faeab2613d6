"""SFR-on: ascent on salient weights, steps on the samples to keep in between, and a slow update."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import Count, NotNegative, Number, Share, check_fields
from ...errors import InvalidInputError
from ...objectives import GlobalMean, ObjectiveOutput, identity
from ...training import GSLoraTrainingArguments, Method
from ..importance import cross_entropies, importances

SLOW_FILE = "slow.safetensors"

_Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]

_SMALLEST_LOSS = 1e-6  # nats; a sample of which the model is sure would outweigh all others


@dataclass(kw_only=True)
class SFRon(Method):
    r"""Alternates one step away from the samples to forget with steps towards the samples to keep.

    A cycle is one forgetting step and `retain_steps` steps on CE(retain half). The forgetting step, on weights with
    I_f ≥ γ · I_r alone, minimises −α_t · mean_i c_i CE_i over the forget half, with c_i ∝ 1 / CE_i^λ of mean 1, no
    gradient through c, and α_t falling from α to 0 by a cosine. I_f and I_r are the diagonals of the empirical Fisher
    information over D_f and D_r before the task. At the end of a cycle θ ← θ_s + ρ (θ − θ_s), with θ_s the weights at
    its start: the steps in between follow the geometry of the remaining data without a Hessian.

    SFR-on, NeurIPS 2024, https://arxiv.org/abs/2409.19732. Defaults are those of its AdamW runs (Tiny-ImageNet, 500
    cycles); with SGD on CIFAR-10 it uses α = 25 and 5 steps. Both have ρ = 1, so that the weights are those after the
    steps. No gradient reaches `lora_A` of a fresh adapter, so that all of it counts as salient.

    Costs one backward pass for each sample before training, and a forward of the half that a step does not use.

    Args:
        forget_scale (`float`, *optional*, defaults to 500.0):
            α, above 0. It acts up to `max_forget_norm`.
        retain_steps (`int`, *optional*, defaults to 1):
            Steps on samples to keep in a cycle, from 1 up.
        adaptivity (`float`, *optional*, defaults to 0.5):
            λ. With 0 every sample weighs the same.
        threshold (`float`, *optional*, defaults to 1.0):
            γ. With 0 every weight moves.
        max_forget_norm (`float`, *optional*, defaults to 7.0):
            Largest norm of the masked gradient of a forgetting step, above 0. The source clips no other gradient:
            `max_grad_norm=0`.
        slow_rate (`float`, *optional*, defaults to 1.0):
            ρ, in (0, 1].
        official_compat (`bool`, *optional*, defaults to `False`):
            I from mean gradients of batches, as in the public code, instead of those of samples.

    Raises:
        InvalidInputError: If a value is out of range, or with fp16, whose gradients are scaled when they are clipped.
    """

    name = "sfron"
    title = "SFR-on, https://arxiv.org/abs/2409.19732"
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 2e-5, "weight_decay": 0.05, "max_grad_norm": 0.0}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"retain_steps": (1, 2, 5), "forget_scale": (25.0, 100.0, 500.0)}

    forget_scale: _Positive = 500.0
    retain_steps: Count = 1
    adaptivity: NotNegative = 0.5
    threshold: NotNegative = 1.0
    max_forget_norm: _Positive = 7.0
    slow_rate: Share = 1.0
    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self._slow: list[Tensor] | None = None

    def check(self, args: GSLoraTrainingArguments) -> None:
        super().check(args)
        if args.fp16:
            expected = "False with this method, which clips gradients that fp16 has scaled"
            raise InvalidInputError("fp16", args.fp16, expected, "Use bf16, or full precision.")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        data, by_sample = self.trainer.train_dataset, not self.official_compat
        forget, retain = (
            importances(self, part, cross_entropies, by_sample=by_sample) for part in (data.forget, data.retain)
        )
        self._masks = [(f + 1e-15) / (r + 1e-15) >= self.threshold for f, r in zip(forget, retain, strict=True)]
        if state.global_step == 0 or self._slow is None:
            self._slow = self._copies()

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        state = self.trainer.state
        if not self._forgets(state):
            return F.cross_entropy(*self.retain_half(inputs, output))
        scale = self.forget_scale * (1 + math.cos(math.pi * state.global_step / state.max_steps)) / 2
        logits, labels = self.forget_half(inputs, output)
        return -scale * adaptive_cross_entropy(logits, labels, self.adaptivity, self.trainer.global_mean)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._forgets(state):
            return
        weights = self.trainer.trained.parameters
        for weight, mask in zip(weights, self._masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)
        nn.utils.clip_grad_norm_(weights, self.max_forget_norm)

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.slow_rate == 1 or (state.global_step + 1) % (1 + self.retain_steps):
            return
        assert self._slow is not None
        for weight, slow in zip(self.trainer.trained.parameters, self._slow, strict=True):
            weight.copy_(slow.lerp(weight, self.slow_rate))
        self._slow = self._copies()

    def save(self, folder: str) -> None:
        if self._slow is not None and self.slow_rate < 1 and self.trainer.args.should_save:
            tensors = {str(i): slow.cpu().contiguous() for i, slow in enumerate(self._slow)}
            save_file(tensors, os.path.join(folder, SLOW_FILE))

    def load(self, folder: str) -> None:
        path = os.path.join(folder, SLOW_FILE)
        if os.path.isfile(path):
            tensors, weights = load_file(path), self.trainer.trained.parameters
            self._slow = [tensors[str(i)].to(weight.device) for i, weight in enumerate(weights)]

    def _forgets(self, state: TrainerState) -> bool:
        """Whether the present step is the first one of a cycle."""
        return state.global_step % (1 + self.retain_steps) == 0

    def _copies(self) -> list[Tensor] | None:
        if self.slow_rate == 1:
            return None
        return [weight.detach().clone() for weight in self.trainer.trained.parameters]


def adaptive_cross_entropy(
    logits: Tensor, labels: Tensor, adaptivity: float, global_mean: GlobalMean = identity
) -> Tensor:
    """Returns mean_i c_i CE_i with c_i ∝ 1 / CE_i^λ of mean 1: what is known best counts most.

    Args:
        logits (`torch.Tensor`):
            Shape `(B, C)`.
        labels (`torch.Tensor`):
            Shape `(B,)`.
        adaptivity (`float`):
            λ.
        global_mean (`Callable`, *optional*):
            Averages a tensor over processes; identity by default.
    """
    losses = cross_entropies(logits, labels)
    weights = losses.detach().clamp(min=_SMALLEST_LOSS).pow(-adaptivity)
    return (weights / global_mean(weights.mean()) * losses).mean()
