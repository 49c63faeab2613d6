"""Fine-tuning of the forgotten model: how fast do the classes come back?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F

from ...objectives import logits_of
from ..base import Attack, AuditContext, Measurement
from ..samples import Batch
from ..subjects import LOGITS, Subject, head_path

HEAD, LORA, ALL, KEPT_ALONE = "head only", "LoRA", "all weights", "all weights, kept data alone"


@dataclass(frozen=True, kw_only=True)
class Relearning(Attack):
    """Fine-tunes the model on n samples of each forgotten class, and asks how soon it knows them again.

    The relearn time of https://arxiv.org/abs/1911.04933 and https://arxiv.org/abs/2201.05629, as an accuracy: that of
    the head on other samples of the forgotten classes, averaged over the steps of the fine-tuning, which is the area
    under the learning curve. Four variants: only the head trains; LoRA on all linear layers besides the head (stock
    PEFT, rank 8, alpha 16); all weights train; and all weights train on the kept classes alone, which shows whether
    the forgotten ones come back by themselves.

    Each step takes all n samples of each forgotten class and as many samples of the kept classes, drawn anew, so that
    the attacker's model stays a useful one and does not answer with forgotten classes only. Cross-entropy, AdamW
    without weight decay, constant learning rate, gradients clipped to a norm of 1. The model stays in eval mode: no
    dropout, fixed BatchNorm statistics. Where several learning rates are given, each model is attacked with all of
    them, and the one that recovers most counts.

    `curve` has the accuracy in points at step 0, `every`, 2 · `every`, …; the figure is the mean without step 0.
    `facts` has the first of these steps at which half of the original's accuracy is reached (`None`: not reached).

    Attacker: has the weights, n labelled samples of each forgotten class and samples of the kept ones. Cost:
    `steps` training steps for each variant, draw and learning rate.

    Args:
        shots (`int`, *optional*, defaults to 4):
            Samples of each forgotten class, n.
        steps (`int`, *optional*, defaults to 40):
            Training steps.
        draws (`int`, *optional*, defaults to 5):
            Draws of the samples.
        every (`int`, *optional*, defaults to 4):
            Steps between two measurements.
        limit (`int`, *optional*, defaults to 512):
            Largest number of samples that are judged, and of kept samples that a draw uses.
        half_batch (`int`, *optional*, defaults to 64):
            Largest number of forgotten samples in a step. If there are more, a step takes some of them at random.
        head_rates (`tuple[float, ...]`, *optional*):
            Learning rates for the head.
        lora_rates (`tuple[float, ...]`, *optional*):
            Learning rates for LoRA.
        all_rates (`tuple[float, ...]`, *optional*):
            Learning rates for all weights.
    """

    name = "relearning"
    title = "relearning"
    knowledge = "has the weights, n labelled samples of each forgotten class, and kept data"

    shots: int = 4
    steps: int = 40
    draws: int = 5
    every: int = 4
    limit: int = 512
    half_batch: int = 64
    head_rates: tuple[float, ...] = (3e-3, 3e-2, 3e-1)
    lora_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    all_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)

    @classmethod
    def quick(cls) -> Relearning:
        return cls(steps=20, draws=2, every=5, limit=256, head_rates=(3e-2,), lora_rates=(3e-3,), all_rates=(3e-4,))

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        head = head_path(subject.model)
        judged = context.judge.of(context.roles.forget)
        if len(judged) > self.limit:
            judged = np.sort(context.rng(self.name, "judged").permutation(judged)[: self.limit])
        predicted = context.original.states(context.judge)[LOGITS][judged].argmax(1)
        half = float(np.equal(predicted, context.judge.labels[judged]).mean()) / 2
        judge = context.judge.batch(judged)
        draws = [_Draw.of(self, context, number) for number in range(self.draws)]
        measurements = []
        for variant, rates in self._variants(head is not None):
            found = {
                rate: np.stack([self._attacked(subject, variant, rate, head, draw, judge) for draw in draws])
                for rate in rates
            }
            best = max(found, key=lambda rate: found[rate][:, 1:].mean())
            setting = variant if variant == KEPT_ALONE else f"{variant}, {self.shots}-shot"
            measurements.append(self._measured(setting, found[best], half, best))
        return measurements

    def _variants(self, has_head: bool) -> Iterator[tuple[str, tuple[float, ...]]]:
        if has_head:
            yield HEAD, self.head_rates
        yield LORA, self.lora_rates
        yield ALL, self.all_rates
        yield KEPT_ALONE, self.all_rates

    def _measured(self, setting: str, hits: np.ndarray, half: float, rate: float) -> Measurement:
        """`hits`: shape `(draws, 1 + measurements, samples)`."""
        curve = hits.mean((0, 2))
        reached = np.flatnonzero(curve >= half)
        facts = {
            "steps to half of the original": float(reached[0] * self.every) if len(reached) else None,
            "learning rate": rate,
        }
        points = [100 * float(value) for value in curve]
        return Measurement.of_hits(setting, hits[:, 1:].mean(1), curve=points, facts=facts)

    def _attacked(
        self, subject: Subject, variant: str, rate: float, head: str | None, draw: _Draw, judge: Batch
    ) -> np.ndarray:
        """Returns what is recognised before and during the attack, bool, shape `(1 + measurements, samples)`."""
        # Half precision would lose small updates.
        model = _prepared(subject.fresh().float(), variant, head, draw.seed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        found = [_recognised(model, judge)]
        for step, batch in enumerate(draw.batches(self.steps, variant == KEPT_ALONE, subject.device), start=1):
            optimizer.zero_grad()
            F.cross_entropy(logits_of(model, batch).float(), batch["labels"]).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if step % self.every == 0:
                found.append(_recognised(model, judge))
        return np.stack(found)


@dataclass(frozen=True)
class _Draw:
    """The data of one attacker: the samples of the forgotten classes, then some of the kept ones, in one batch."""

    data: Batch
    forgotten: int
    kept: int
    size: int
    seed: int

    @classmethod
    def of(cls, attack: Relearning, context: AuditContext, number: int) -> _Draw:
        forgotten = context.draw(attack.shots, context.roles.forget, attack.name, number)
        rng = context.rng(attack.name, "kept", number)
        kept = context.attacker.of([*context.roles.retain, *context.roles.missing])
        kept = rng.permutation(kept)[: attack.limit]
        data = context.attacker.batch(np.concatenate([forgotten, kept]))
        size = min(len(forgotten), attack.half_batch)
        return cls(data, len(forgotten), len(kept), size, int(rng.integers(2**62)))

    def batches(self, steps: int, kept_alone: bool, device: torch.device) -> Iterator[Batch]:
        rng = np.random.default_rng(self.seed)
        for _ in range(steps):
            forgotten = rng.permutation(self.forgotten)[: self.size]
            count = min(2 * self.size if kept_alone else self.size, self.kept)
            kept = self.forgotten + rng.choice(self.kept, count, replace=False) if count else forgotten[:0]
            yield picked(self.data, kept if kept_alone else np.concatenate([forgotten, kept]), device)


def picked(batch: Batch, rows: np.ndarray, device: torch.device) -> Batch:
    """Returns some rows of a batch, on a device. What does not have a row for each sample stays as it is."""
    count, index = len(batch["labels"]), torch.from_numpy(rows)
    return {
        name: value[index].to(device) if isinstance(value, torch.Tensor) and value.shape[:1] == (count,) else value
        for name, value in batch.items()
    }


@torch.no_grad()
def _recognised(model: nn.Module, judge: Batch, size: int = 128) -> np.ndarray:
    device, parts = next(model.parameters()).device, []
    for rows in np.array_split(np.arange(len(judge["labels"])), -(-len(judge["labels"]) // size)):
        batch = picked(judge, rows, device)
        logits = logits_of(model, batch)
        # The argmax of NaN would be class 0.
        parts.append((logits.argmax(1) == batch["labels"]) & logits.isfinite().all(1))
    return torch.cat(parts).cpu().numpy()


def _prepared(model: nn.Module, variant: str, head: str | None, seed: int) -> nn.Module:
    """Freezes what does not train, or adds LoRA."""
    if variant == LORA:
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", exclude_modules=[head] if head else None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)  # freezes the other weights
        model.eval()
    elif variant == HEAD:
        model.requires_grad_(False)
    if head:
        model.get_submodule(head).requires_grad_(True)
    return model
