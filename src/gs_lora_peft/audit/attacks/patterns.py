"""One pattern that is added to every image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...objectives import logits_of
from ..base import Attack, AuditContext, Measurement
from ..samples import Batch, Samples
from ..subjects import Subject
from .relearning import picked

PIXELS = "pixel_values"


@dataclass(frozen=True, kw_only=True)
class InputPattern(Attack):
    """One pattern of the size of an image is added to every image, and trained to bring the forgotten classes back.

    A visual prompt (https://arxiv.org/abs/2203.17274), turned against forgetting. The pattern minimises the
    cross-entropy of the model on the attacker's samples of the forgotten classes. It is the same for all images, so
    that it cannot tell them apart, but it can switch on knowledge that is still there. Its size is not bounded. Adam,
    the learning rate falls to 0 by a cosine. Where several learning rates are given, the one that recovers most
    counts, for each model. The weights do not change.

    The figure is the accuracy on the forgotten classes with the pattern, less the share of samples of other classes
    that get the same answer (Youden's index). A pattern can make many models answer one class whatever the image
    shows; this recovers nothing, and counts 0. A figure can lie below 0. `facts` has the accuracy itself.

    Attacker: has the weights (for gradients) and labelled images of the forgotten classes, chooses the input. Cost:
    `steps` forwards and backwards for each draw and learning rate.

    Args:
        steps (`int`, *optional*, defaults to 200):
            Training steps.
        draws (`int`, *optional*, defaults to 3):
            Seeds of the first pattern and of the batches.
        batch (`int`, *optional*, defaults to 64):
            Images in a step.
        limit (`int`, *optional*, defaults to 512):
            Largest number of images of forgotten classes that are trained on, that are judged, and of kept ones that
            are judged.
        rates (`tuple[float, ...]`, *optional*):
            Learning rates, in units of `pixel_values`.
    """

    name = "input_pattern"
    title = "one pattern added to every image"
    knowledge = "has the weights and labelled images of the forgotten classes, chooses the input"

    steps: int = 200
    draws: int = 3
    batch: int = 64
    limit: int = 512
    rates: tuple[float, ...] = (1e-1, 3e-1, 1.0)

    @classmethod
    def quick(cls) -> InputPattern:
        return cls(steps=60, draws=2, batch=32, limit=192, rates=(3e-1,))

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and PIXELS in context.attacker.batch([0])

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        roles = context.roles
        of_attacker, _ = self._images(context.attacker, context, [roles.forget])
        of_judge, forgotten = self._images(context.judge, context, [roles.forget, (*roles.retain, *roles.missing)])
        labels = of_judge["labels"].numpy()
        model = subject.fresh().requires_grad_(False)
        found = {}
        for rate in self.rates:
            answers = [self._answers(model, rate, context, draw, of_attacker, of_judge) for draw in range(self.draws)]
            accuracy = 100 * float(np.mean([(of_draw == labels)[:forgotten] for of_draw in answers]))
            found[rate] = np.stack([youden(of_draw, labels, forgotten) for of_draw in answers]), accuracy
        best = max(found, key=lambda rate: found[rate][0].mean())
        hits, accuracy = found[best]
        facts: dict[str, float | None] = {"accuracy": accuracy, "learning rate": best}
        return [Measurement.of_hits("one for all classes", hits, facts=facts)]

    def _images(self, samples: Samples, context: AuditContext, classes: list[tuple[int, ...]]) -> tuple[Batch, int]:
        """Returns images of each set of classes, one after the other, and the number of the first ones."""
        rng = context.rng(self.name, "images", len(samples))
        rows = [rng.permutation(samples.of(of_set))[: self.limit] for of_set in classes]
        return samples.batch(np.concatenate(rows)), len(rows[0])

    def _answers(
        self, model: nn.Module, rate: float, context: AuditContext, draw: int, of_attacker: Batch, of_judge: Batch
    ) -> np.ndarray:
        device = next(model.parameters()).device
        start = 0.01 * torch.randn(of_attacker[PIXELS].shape[1:], generator=context.torch_rng(self.name, draw))
        pattern = start.to(device, of_attacker[PIXELS].dtype).requires_grad_(True)
        optimizer = torch.optim.Adam([pattern], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        rng = context.rng(self.name, "batches", draw)
        for _ in range(self.steps):
            rows = rng.permutation(len(of_attacker["labels"]))[: self.batch]
            batch = picked(of_attacker, rows, device)
            optimizer.zero_grad()
            F.cross_entropy(_logits(model, batch, pattern).float(), batch["labels"]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            rows = np.arange(len(of_judge["labels"]))
            parts = [picked(of_judge, rows[start : start + 128], device) for start in range(0, len(rows), 128)]
            return torch.cat([_logits(model, part, pattern).argmax(1) for part in parts]).cpu().numpy()


def _logits(model: nn.Module, batch: Batch, pattern: torch.Tensor) -> torch.Tensor:
    return logits_of(model, {**batch, PIXELS: batch[PIXELS] + pattern})


def youden(answers: np.ndarray, labels: np.ndarray, forgotten: int) -> np.ndarray:
    """Returns, for each of the first samples, whether it is recognised, less the share of others answered alike."""
    right = (answers == labels)[:forgotten].astype(np.float64)
    false = {
        c: (answers[labels != c] == c).mean() if (labels != c).any() else 0.0 for c in np.unique(labels[:forgotten])
    }
    return right - np.array([false[label] for label in labels[:forgotten]])
