"""How much each weight matters to samples: the mean over them of a power of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...compat import reference_model
from ...objectives import logits_of
from ...training import Method, Trained, own_batches

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
    trainer = method.trainer
    weights = trainer.trained.parameters
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    count = 0
    with _at_start(trainer.trained, trainer.model):
        for batch in own_batches(trainer, [dataset]):
            for part in _samples(batch) if by_sample else [batch]:
                value = measure(logits_of(trainer.model, part).float(), part["labels"]).mean()
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += power(gradient.float())
                count += 1
    number = trainer.global_sum(torch.tensor(float(count), device=sums[0].device))
    return [trainer.global_sum(total) / number.to(total.device) for total in sums]


@contextmanager
def _at_start(trained: Trained, model: nn.Module) -> Iterator[None]:
    """Puts the weights before the task into the model, in eval mode and with gradient.

    [`Trained.before`] takes an adapter off, which then has no gradient.
    """
    weights = trained.parameters
    now = [weight.data for weight in weights]
    for weight, start in zip(weights, trained.start, strict=True):
        weight.data = start.to(weight.dtype)
    try:
        with reference_model(model, None), torch.enable_grad():
            yield
    finally:
        for weight, data in zip(weights, now, strict=True):
            weight.data = data


def _samples(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields each sample of a batch as a batch of one."""
    number = len(batch["labels"])
    for row in range(number):
        yield {
            name: value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == number else value
            for name, value in batch.items()
        }
