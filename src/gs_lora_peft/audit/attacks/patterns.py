"""One pattern that is added to every image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ...objectives import logits_of
from ..base import Attack, AuditContext, Measurement
from ..samples import Batch
from ..subjects import Subject
from .relearning import picked

PIXELS = "pixel_values"


@dataclass(frozen=True, kw_only=True)
class InputPattern(Attack):
    """One pattern of the size of an image is added to every image, and trained to bring the forgotten classes back.

    A visual prompt (https://arxiv.org/abs/2203.17274), turned against forgetting. The pattern minimises the
    cross-entropy of the model on the attacker's samples of the forgotten classes; then it is added to the judge's
    samples of these classes. It is the same for all of them, so it cannot name a class, but it can switch knowledge
    on that is still there. Its size is not bounded. Adam, learning rate falling to 0 by a cosine; where several
    learning rates are given, the one that recovers most counts, for each model. The weights do not change.

    A small pattern also upsets fragile models in general, so only the excess over the reference counts.

    Attacker: has the weights (for gradients) and labelled images of the forgotten classes; chooses the input. Cost:
    `steps` forwards and backwards for each draw and learning rate.

    Args:
        steps (`int`, *optional*, defaults to 300):
            Training steps.
        draws (`int`, *optional*, defaults to 3):
            Seeds of the first pattern and of the batches.
        batch (`int`, *optional*, defaults to 64):
            Images in a step.
        limit (`int`, *optional*, defaults to 512):
            Largest number of images that are trained on, and that are judged.
        rates (`tuple[float, ...]`, *optional*):
            Learning rates, in units of `pixel_values`.
    """

    name = "input_pattern"
    title = "one pattern added to every image"
    knowledge = "has the weights and labelled images of the forgotten classes, chooses the input"

    steps: int = 300
    draws: int = 3
    batch: int = 64
    limit: int = 512
    rates: tuple[float, ...] = (1e-1, 3e-1, 1.0)

    @classmethod
    def quick(cls) -> InputPattern:
        return cls(steps=60, draws=2, batch=32, limit=256, rates=(3e-1,))

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and PIXELS in context.attacker.batch([0])

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        of_attacker, of_judge = (
            samples.batch(context.rng(self.name, who).permutation(samples.of(context.roles.forget))[: self.limit])
            for who, samples in (("attacker", context.attacker), ("judge", context.judge))
        )
        found = [
            np.stack([self._hits(subject, rate, context, draw, of_attacker, of_judge) for draw in range(self.draws)])
            for rate in self.rates
        ]
        return [Measurement.of_hits("one for all forgotten classes", max(found, key=np.mean))]

    def _hits(
        self, subject: Subject, rate: float, context: AuditContext, draw: int, of_attacker: Batch, of_judge: Batch
    ) -> np.ndarray:
        device, model = subject.device, subject.fresh().requires_grad_(False)
        first = 0.01 * torch.randn(of_attacker[PIXELS].shape[1:], generator=context.torch_rng(self.name, draw))
        pattern = first.to(device, of_attacker[PIXELS].dtype).requires_grad_(True)
        optimizer = torch.optim.Adam([pattern], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        rng, count = context.rng(self.name, "batches", draw), len(of_attacker["labels"])
        for _ in range(self.steps):
            batch = picked(of_attacker, rng.permutation(count)[: self.batch], device)
            optimizer.zero_grad()
            F.cross_entropy(self._logits(model, batch, pattern).float(), batch["labels"]).backward()
            optimizer.step()
            schedule.step()
        hits = []
        for rows in np.array_split(np.arange(len(of_judge["labels"])), -(-len(of_judge["labels"]) // 128)):
            batch = picked(of_judge, rows, device)
            with torch.no_grad():
                hits.append(self._logits(model, batch, pattern).argmax(1) == batch["labels"])
        return torch.cat(hits).cpu().numpy()

    @staticmethod
    def _logits(model: torch.nn.Module, batch: Batch, pattern: torch.Tensor) -> torch.Tensor:
        return logits_of(model, {**batch, PIXELS: batch[PIXELS] + pattern})
