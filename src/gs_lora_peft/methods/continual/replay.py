"""Dark experience replay and function distance regularisation: outputs for the samples to keep stay as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import NotNegative
from ...compat import unwrapped
from ...objectives import ObjectiveOutput, captured_embeddings, logits_of
from ...training import half_of
from .base import PUBLISHED, Relabelling


@dataclass(kw_only=True)
class DER(Relabelling):
    """Dark experience replay: other labels for the samples to forget, and the old logits for the others.

    Minimises CE(relabelled forget half) + λ · mean ‖z − z'‖² over the half to keep, where z' are the logits of the
    model before all requests (https://arxiv.org/abs/2004.07211, eq. 6; the samples to keep are its buffer). The public
    code of GS-LoRA compares embeddings instead, and sums over the batch, so that λ depends on its size.

    Cost: one more forward of the half to keep; with `official_compat` two.

    Args:
        distance_weight (`float`, *optional*, defaults to 0.01):
            λ, at least 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels and compare embeddings as the public code does.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "der"
    title = "DER, https://arxiv.org/abs/2004.07211"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-3}
    space: ClassVar = {"distance_weight": (0.01, 0.1, 1.0)}

    distance_weight: NotNegative = 0.01

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        if self.official_compat:
            distance = self._distance_of_embeddings(model, inputs)
        else:
            kept, _ = self.retain_half(inputs, output)
            distance = (kept - self.original_logits(model, inputs, "retain")).square().sum(1).mean()
        return self.relabelled_loss(inputs, output) + self.distance_weight * distance

    def _distance_of_embeddings(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        half = half_of(inputs, "retain")
        with captured_embeddings(model) as now:
            logits_of(model, half)
        with captured_embeddings(model) as before, self.trainer.trained.original():
            logits_of(unwrapped(model), half)
        return (now.embeddings - before.embeddings).square().sum()


@dataclass(kw_only=True)
class DERpp(DER):
    """DER++: [`DER`], and the labels of the samples to keep.

    Minimises CE(relabelled forget half) + λ · mean ‖z − z'‖² + λ₊ · CE(retain half, y)
    (https://arxiv.org/abs/2004.07211, eq. 7). The paper draws two batches from its buffer, for the second and for the
    third term; here both act on the half to keep.

    Cost: as [`DER`].

    Args:
        distance_weight (`float`, *optional*, defaults to 0.005):
            λ, at least 0. The papers take 0.005 for sequences of requests and 0.05 for a single one.
        retain_weight (`float`, *optional*, defaults to 0.005):
            λ₊, at least 0.
        official_compat (`bool`, *optional*, defaults to `False`):
            As in [`DER`].

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "derpp"
    title = "DER++, https://arxiv.org/abs/2004.07211"
    space: ClassVar = {"distance_weight": (0.005, 0.05, 0.5), "retain_weight": (0.005, 0.1, 1.0)}

    distance_weight: NotNegative = 0.005
    retain_weight: NotNegative = 0.005

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        kept = F.cross_entropy(*self.retain_half(inputs, output))
        return super().loss(model, inputs, output) + self.retain_weight * kept


@dataclass(kw_only=True)
class FDR(Relabelling):
    """Function distance regularisation: other labels for the samples to forget, and the old answers for the others.

    Minimises CE(relabelled forget half) + λ · mean ‖p − p'‖₂ over the half to keep, where p' are the probabilities
    that the model before all requests gives (https://arxiv.org/abs/1805.08289, in the form for classifiers that DER's
    authors compare with). The public code of GS-LoRA takes the logits instead of the probabilities.

    Cost: one more forward of the half to keep.

    Args:
        distance_weight (`float`, *optional*, defaults to 50):
            λ, at least 0. The papers take 50 for faces and 40 for ImageNet100, with logits.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw labels and compare logits as the public code does.

    Raises:
        InvalidInputError: If a value is out of range, or the model cannot be trained this way.
    """

    name = "fdr"
    title = "FDR, https://arxiv.org/abs/1805.08289"
    published: ClassVar = {**PUBLISHED, "learning_rate": 1e-3}
    space: ClassVar = {"distance_weight": (1.0, 10.0, 50.0)}

    distance_weight: NotNegative = 50.0

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        now, before = self.retain_half(inputs, output)[0], self.original_logits(model, inputs, "retain")
        if not self.official_compat:
            now, before = now.softmax(1), before.softmax(1)
        # The slope of the norm at 0, where training starts, is 0.
        distance = torch.linalg.vector_norm(now - before, dim=1).mean()
        return self.relabelled_loss(inputs, output) + self.distance_weight * distance
