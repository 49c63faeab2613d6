"""Distillation: what the model says of the classes that are not to be forgotten is held at what it said before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import GlobalMean, Objective, ObjectiveOutput, identity, unwrapped
from .before_task import before_the_task
from .classification import logits_of


def distillation_loss(logits: Tensor, earlier: Tensor, left_out: Sequence[int] = ()) -> Tensor:
    """
    Mean KL(p_before ‖ p_now) over the classes that are not left out; one that the model rules out (logit −∞) adds 0.

    Args:
        logits (`torch.Tensor`): shape `(B, C)`, with gradient.
        earlier (`torch.Tensor`): the same shape, of the model before the task.
        left_out (`Sequence[int]`, *optional*, defaults to none): classes that both probabilities are conditioned on
            not being; fewer than C.

    Returns:
        `torch.Tensor`: scalar in nats, not negative.
    """
    stays = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    stays[list(left_out)] = False
    now, before = (x[:, stays].float().log_softmax(1) for x in (logits, earlier))
    # A class that the model rules out with a logit of -inf adds 0, not 0 · (-inf + inf).
    difference = (before - now).masked_fill(before == -math.inf, 0.0)
    return (before.exp() * difference).sum(1).mean()


class DistillationObjective(Objective):
    r"""
    Adds w_d · KL(p_before ‖ p_now) to the objective of a classifier, over all classes but those to forget: knowledge
    distillation (https://arxiv.org/abs/1503.02531) as Learning without Forgetting uses it
    (https://arxiv.org/abs/1606.09282), with the classes to forget left out. Not part of the papers' method.

    Nothing else speaks for classes that have no training data. What the earlier model says of them on the images of
    others does, on those to forget, too: how they resemble the classes that stay need not change. Where every class
    has data the half to keep says enough, and the half to forget is better left to the forgetting term
    (docs/benchmarks.md). What earlier requests forgot is held as forgotten as it was. The earlier model is the one
    that trains with its adapter off, so that nothing is stored; it costs a second forward without gradient.

    Args:
        objective ([`Objective`]): what the term is added to; its outputs must hold the logits.
        weight (`float`): w_d.
        adapter (`str`, *optional*, defaults to `"default"`): the adapter that trains.
        left_out (`Sequence[int]`, *optional*, defaults to none): the classes to forget, not those forgotten before.
        retain_only (`bool`, *optional*, defaults to `False`): leave out the half to forget.
    """

    def __init__(
        self,
        objective: Objective,
        weight: float,
        adapter: str = "default",
        left_out: Sequence[int] = (),
        retain_only: bool = False,
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.weight = weight
        self.adapter = adapter
        self.left_out = list(left_out)
        self.retain_only = retain_only

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        output = self.objective.training_step(model, inputs, global_mean)
        if output.logits is None:
            raise TypeError(f"{type(self.objective).__name__} gives no logits; expected those of a classifier.")
        # Past the wrapper for several processes, which would expect a backward pass. After the other forward: autocast
        # keeps what it has cast, and what was cast without gradient has none.
        own = unwrapped(model)
        size = len(inputs["labels"])
        rows = size // 2 if self.retain_only else size
        with before_the_task(own, self.adapter):
            earlier = logits_of(own, _first_rows(inputs, rows, size))
        distillation = distillation_loss(output.logits[:rows], earlier, self.left_out)
        output.loss = output.loss + self.weight * distillation
        output.metrics |= {"distillation": distillation.detach()}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def _first_rows(inputs: dict[str, Any], rows: int, size: int) -> dict[str, Any]:
    """The first rows of a batch of `size`; what does not belong to single samples stays as it is."""
    return {
        name: value[:rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in inputs.items()
    }
