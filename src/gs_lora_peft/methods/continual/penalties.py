"""Penalties for moving weights away from where they were: L2, EWC and MAS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative
from ...objectives import ObjectiveOutput
from .base import PUBLISHED, Relabelling
from .moving import MovingWeights, QuadraticPull, importance_of, state_of


@dataclass(kw_only=True)
class EarlierWeights(Relabelling):
    """Trains on all samples, those to forget with other labels, and pulls every weight to its earlier values.

    Minimises CE(relabelled forget half ∪ retain half) + λ · Σ_k Σ_i Ω_ki · (θ_i − θ_ki)². At request t the states k
    are the original weights and the weights after each earlier request, and Ω_k is the importance of the weights in
    state k, measured on the samples to keep of the request that follows it.

    Cost: two numbers for each weight that trains in memory (importance and centre, whatever the number of requests),
    and one more for its own importance from the second request on. Each request leaves two numbers for each weight on
    disk (L2: one), of the frozen weight W if an adapter trains, see [`MovingWeights`].
    """

    penalty_weight: NotNegative = 0.0
    _moving: MovingWeights = field(init=False, repr=False, compare=False)
    _own: list[Tensor] = field(init=False, repr=False, compare=False)
    _pull: QuadraticPull = field(init=False, repr=False, compare=False)

    def importance(self) -> list[Tensor]:
        """Returns Ω of the weights before the task."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Again in a training that is resumed, from the same weights.
        self._moving = MovingWeights(self.trainer.trained)
        self._own = self.importance()
        self._pull = QuadraticPull(self._moving.names, self._moving.before(), self._own, self.earlier)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        kept = F.cross_entropy(*self.retain_half(inputs, output))
        fitting = (kept + self.relabelled_loss(inputs, output)) / 2
        return fitting + self.penalty_weight * self._pull(self._moving.moves())

    def leave(self) -> dict[str, Tensor]:
        return state_of(self._moving.names, self._moving.before(), self._own)


@dataclass(kw_only=True)
class L2(EarlierWeights):
    """Other labels for the samples to forget, and a pull of every weight to its earlier values.

    Minimises CE(relabelled forget half ∪ retain half) + λ · Σ_k ‖θ − θ_k‖², over the original weights and those after
    each earlier request. This is EWC (https://arxiv.org/abs/1612.00796) with the importance 1, and a baseline of
    GS-LoRA (https://arxiv.org/abs/2403.11530). With an adapter θ is W + s·B·A of the adapted layers.

    Cost of a step: one pass over the weights. From the second request on it needs one more copy of them, and each
    request leaves one on disk.

    Args:
        penalty_weight (`float`, *optional*, defaults to 0.1):
            λ, at least 0. The papers take 0.1 for sequences of requests and 0.05 for a single one.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels as the public code does, see [`Relabelling`].

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "l2"
    title = "L2 to earlier weights, a baseline of https://arxiv.org/abs/2403.11530"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4}
    space: ClassVar = {"penalty_weight": (0.01, 0.05, 0.1)}

    penalty_weight: NotNegative = 0.1

    def importance(self) -> list[Tensor]:
        return [torch.ones((), device=weight.device) for weight in self._moving.sources]


@dataclass(kw_only=True)
class EWC(EarlierWeights):
    """Elastic weight consolidation: other labels for the samples to forget, and a pull on the weights that matter.

    Minimises CE(relabelled forget half ∪ retain half) + λ · Σ_k Σ_i F_ki · (θ_i − θ_ki)². F_k is the diagonal of the
    empirical Fisher information: the mean over the samples to keep of (∂CE/∂θ)² with their own labels, one gradient
    for each sample (https://arxiv.org/abs/1612.00796, whose λ is twice this one). The public code of GS-LoRA takes the
    squared gradient of a mini-batch times its size instead, in which the gradients of samples cancel.

    Cost: one forward and backward pass for each sample to keep before training. For memory and disk see
    [`EarlierWeights`].

    Args:
        penalty_weight (`float`, *optional*, defaults to 10):
            λ, at least 0. The papers take 10 for faces and 3 for ImageNet100.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels and measure importance as the public code does: faster, and less exact.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "ewc"
    title = "EWC, https://arxiv.org/abs/1612.00796"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4}
    space: ClassVar = {"penalty_weight": (1.0, 3.0, 10.0)}

    penalty_weight: NotNegative = 10.0

    def importance(self) -> list[Tensor]:
        return importance_of(
            self._moving,
            self.trainer,
            F.cross_entropy,
            lambda gradient, size: size * gradient.square(),
            by_sample=not self.official_compat,
        )


@dataclass(kw_only=True)
class MAS(EarlierWeights):
    """Memory aware synapses: other labels for the samples to forget, and a pull on the weights that move the output.

    Minimises CE(relabelled forget half ∪ retain half) + λ · Σ_k Σ_i Ω_ki · (θ_i − θ_ki)². Ω_k is the mean over the
    samples to keep of |∂s/∂θ|, where s is the mean of the C squared logits of one sample. The paper
    (https://arxiv.org/abs/1711.09601) has their sum: its λ is C times smaller. The public code of GS-LoRA, whose λ
    these are, takes the mean over a mini-batch before the absolute value, in which the gradients of samples cancel.

    Cost: one forward and backward pass for each sample to keep before training. For memory and disk see
    [`EarlierWeights`].

    Args:
        penalty_weight (`float`, *optional*, defaults to 0.005):
            λ, at least 0. The papers take 0.005 for sequences of requests and 5 for a single one on faces, and 0.002
            on ImageNet100.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels and measure importance as the public code does: faster, and less exact.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "mas"
    title = "MAS, https://arxiv.org/abs/1711.09601"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4}
    space: ClassVar = {"penalty_weight": (0.005, 0.1, 5.0)}

    penalty_weight: NotNegative = 0.005

    def importance(self) -> list[Tensor]:
        return importance_of(
            self._moving,
            self.trainer,
            lambda logits, _: logits.square().mean(),
            lambda gradient, _: gradient.abs(),
            by_sample=not self.official_compat,
        )
