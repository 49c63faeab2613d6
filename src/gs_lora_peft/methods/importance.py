"""How much each weight matters to samples: the mean over them of a power of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..objectives import logits_of
from ..training import Method, own_batches, rows_of

# From logits `(B, C)` and labels `(B,)` to what is differentiated, of each sample: `(B,)`.
Measure = Callable[[Tensor, Tensor], Tensor]


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each sample, shape `(B,)`."""
    return F.cross_entropy(logits, labels, reduction="none")


def squared_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns ‖z‖² of each sample's logits, shape `(B,)`; without a look at the labels."""
    return logits.square().sum(1)


def importances(
    method: Method,
    dataset: Any,
    measure: Measure = cross_entropies,
    power: Callable[[Tensor], Tensor] = torch.square,
    *,
    by_sample: bool = True,
) -> list[Tensor]:
    """Returns mean_i power(∂ measure_i / ∂θ) at the weights before the task, for each tensor that trains.

    By sample it is the diagonal of the empirical Fisher information, if the measure is the cross-entropy and the power
    the square; this costs one backward pass for each sample. By batch, gradients of samples cancel within a batch
    before the power is taken, so that the result shrinks with the size of the batch; this costs one for each batch.

    Args:
        method ([`Method`]):
            The method, whose trainer is about to train.
        dataset (map-style dataset):
            The samples. Each process takes its share; the result is the same in every process.
        measure (`Callable`, *optional*):
            What is differentiated; by default the cross-entropy.
        power (`Callable`, *optional*):
            The power of the gradient; by default its square.
        by_sample (`bool`, *optional*, defaults to `True`):
            Whether the power is taken of each sample's gradient, or of the mean gradient of each batch.
    """
    trained = method.trainer.trained
    with trained.at_start():
        return mean_of_gradients(
            method.trainer,
            dataset,
            trained.parameters,
            lambda logits, labels: measure(logits, labels).mean(),
            lambda gradient, _: power(gradient),
            by_sample=by_sample,
        )


def mean_of_gradients(
    trainer: Any,
    dataset: Any,
    weights: Sequence[Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[Tensor, int], Tensor],
    *,
    by_sample: bool,
) -> list[Tensor]:
    """Returns the mean of a measure of gradients over samples, or over batches, and processes.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer. Its model must be in the state to look at, with gradients of `weights`.
        dataset (map-style dataset):
            The samples.
        weights (`Sequence[torch.Tensor]`):
            What the score is differentiated by.
        score (`Callable`):
            From logits `(B, C)` in float32 and labels `(B,)` to a scalar.
        measure (`Callable`):
            From the gradient of the score of B samples, and B, to what is averaged.
        by_sample (`bool`):
            Whether B is 1, which costs one backward pass for each sample; else B is the batch size of evaluation.

    Returns:
        `list[torch.Tensor]`: float32, of the shapes of `weights`; the same in every process.
    """
    sums = [torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for weight in weights]
    count = torch.zeros((), device=sums[0].device)
    for batch in own_batches(trainer, [dataset]):
        size = len(batch["labels"])
        step = 1 if by_sample else size
        for part in (rows_of(batch, slice(first, first + step)) for first in range(0, size, step)):
            scored = score(logits_of(trainer.model, part).float(), part["labels"])
            gradients = torch.autograd.grad(scored, weights, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += measure(gradient.float(), step)
            count += 1
    number = trainer.global_sum(count)
    return [trainer.global_sum(total) / number.to(total.device) for total in sums]
