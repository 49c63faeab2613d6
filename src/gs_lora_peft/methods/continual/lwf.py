"""Learning without forgetting: the samples to keep are to be answered as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import NotNegative
from ...objectives import ObjectiveOutput
from .base import PUBLISHED, Positive, Relabelling


@dataclass(kw_only=True)
class LwF(Relabelling):
    """Other labels for the samples to forget, while the others are answered as the original model answers them.

    Minimises CE(relabelled forget half) + λ_d · KD_T(retain half) + λ_r · CE(retain half, y). KD_T is −Σ p'·log p with
    the answers softened by T, p ∝ exp(z / T), and without T² (Learning without Forgetting,
    https://arxiv.org/abs/1606.09282, eq. 2). There the teacher answers the new samples; here these are the samples to
    forget, whose old answers name their class, so that the baseline of GS-LoRA (https://arxiv.org/abs/2403.11530)
    takes the samples to keep. The teacher is the model before all requests. In the public code this term is the same
    for all weights, because it takes the logarithm of a logarithm.

    Cost: one more forward of the half to keep.

    Args:
        distillation_weight (`float`, *optional*, defaults to 0.5):
            λ_d, at least 0.
        retain_weight (`float`, *optional*, defaults to 10):
            λ_r, at least 0. The papers take 10, and 2 with few samples.
        temperature (`float`, *optional*, defaults to 2):
            T, above 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels as the public code does, and leave out the distillation, as it does in effect.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "lwf"
    title = "LwF, https://arxiv.org/abs/1606.09282"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-4}
    space: ClassVar = {"retain_weight": (1.0, 2.0, 10.0), "distillation_weight": (0.5, 2.0, 10.0)}

    distillation_weight: NotNegative = 0.5
    retain_weight: NotNegative = 10.0
    temperature: Positive = 2.0

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        kept, labels = self.retain_half(inputs, output)
        loss = self.relabelled_loss(inputs, output) + self.retain_weight * F.cross_entropy(kept, labels)
        if self.official_compat:
            return loss
        answers = self.original_logits(model, inputs, "retain").div(self.temperature).softmax(1)
        return loss + self.distillation_weight * F.cross_entropy(kept / self.temperature, answers)
