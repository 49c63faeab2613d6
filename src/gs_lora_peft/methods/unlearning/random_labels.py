"""Random labels for the samples to forget, on all weights or on the salient ones (SalUn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import NotNegative, Share, check_fields
from ...objectives import ObjectiveOutput, logits_of
from ...training import Method, own_batches


@dataclass(kw_only=True)
class RandomLabels(Method):
    """Trains the samples to forget towards random kept classes, and the others towards their own.

    Minimises CE(retain half, y) + w · CE(forget half, ŷ), with ŷ drawn anew at every step, uniformly from the classes
    to keep. Amnesiac unlearning (https://arxiv.org/abs/2010.10981) draws from all classes; the true one and other
    classes to forget are left out here, which would be learned again.

    Args:
        forget_weight (`float`, *optional*, defaults to 1.0):
            w, at least 0.

    Raises:
        InvalidInputError: If `forget_weight` is negative; at the first step, if the model is not a classifier.
    """

    name = "random_labels"
    title = "random labels, https://arxiv.org/abs/2010.10981"
    # The source names no rate: a usual one for AdamW on weights, where the default is one for LoRA factors.
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"forget_weight": (0.3, 1.0, 3.0)}

    forget_weight: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        (gone, labels), kept = self.forget_half(inputs, output), self.retain_half(inputs, output)
        return F.cross_entropy(*kept) + self.forget_weight * F.cross_entropy(gone, self.random_kept(labels))


@dataclass(kw_only=True)
class SalUn(RandomLabels):
    """Random labels for the weights alone that matter to the samples to forget.

    SalUn (https://arxiv.org/abs/2310.12508): before training, the share of all weights with the largest |∂CE/∂θ| over
    D_f is chosen, by one rank over the whole model. All others stay as they are, exactly: they are put back after
    every step, because momentum and weight decay move them, too. (The public code masked gradients alone until
    2026.) Costs one pass over D_f more than [`RandomLabels`].

    Args:
        share (`float`, *optional*, defaults to 0.5):
            Share of the weights that train, in (0, 1].

    Raises:
        InvalidInputError: If `share` is out of range, or as for [`RandomLabels`].
    """

    name = "salun"
    trains = "weights"
    title = "SalUn, https://arxiv.org/abs/2310.12508"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.013,
        "num_train_epochs": 10,
        "weight_decay": 5e-4,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"share": (0.1, 0.3, 0.5)}

    share: Share = 0.5

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.masks = self._masks(self._saliency())

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trained = self.trainer.trained
        for weight, start, mask in zip(trained.parameters, trained.start, self.masks, strict=True):
            weight.copy_(torch.where(mask, weight, start))

    def _saliency(self) -> list[Tensor]:
        """|∂CE/∂θ| of the model before the task over all samples to forget, also in a training that is resumed."""
        trainer = self.trainer
        weights = trainer.trained.parameters
        sums = [torch.zeros_like(weight) for weight in weights]
        with trainer.trained.before(), torch.enable_grad():
            for batch in own_batches(trainer, [trainer.train_dataset.forget]):
                loss = F.cross_entropy(logits_of(trainer.model, batch).float(), batch["labels"], reduction="sum")
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                    if gradient is not None:
                        total += gradient
        return [trainer.global_sum(total).abs() for total in sums]

    def _masks(self, saliency: list[Tensor]) -> list[Tensor]:
        flat = torch.cat([values.flatten() for values in saliency])
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.topk(max(1, round(self.share * len(flat)))).indices] = True
        parts = chosen.split([values.numel() for values in saliency])
        return [part.view_as(values) for part, values in zip(parts, saliency, strict=True)]
