"""Forgetting in depth: a term that makes the states of forgotten samples those of kept ones, behind every block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import reference_model, unwrapped
from ..errors import InvalidInputError
from ..tuner import compiled_pattern
from .base import LossArguments, Objective, ObjectiveOutput, Task
from .heads import logits_of
from .losses import DepthTarget, GlobalMean, identity
from .states import CapturedStates, Pooling, block_paths, captured_states

# What an attacker may read of a block: the class token, and the mean over all tokens.
_POOLINGS: tuple[Pooling, ...] = ("first", "mean")


class DepthObjective(Objective):
    r"""Adds w · the distance of the states of forgotten samples from those of kept samples, in every block.

    A head that no longer answers with a class leaves its traces in the states before the head: few images and a new
    head bring the class back. A model that never saw a class takes its samples for the kept classes that they resemble
    most, in every block. This term trains towards such states:

    $$\frac{1}{|L|} \sum_{l \in L} \operatorname{mean}_i \left\| n(s_l(x_i)) - n(s_l^0(y_{j(i)})) \right\|^2 / d$$

    L are the blocks and the two readings of each, its first token (the class token of a ViT) and the mean over its
    tokens; s_l and s_l⁰ are the states of the model that trains and of the model before the task, n is a layer norm
    without weights and d is the width. x_i is a sample to forget. y_{j(i)} is a sample of the half to keep, of that
    class among the classes in this half to which the model before the task gives the largest logit for x_i. It is
    drawn anew at each step. No gradient reaches the targets.

    Ranked by the model that trains, more and more samples would fall to one kept class, and the kept classes would
    suffer. Each step therefore costs one more forward, without gradient. Targets are samples of the same process.
    Under DDP the loss is the mean over processes, as for the other terms.

    Args:
        objective ([`Objective`]):
            The objective that the term is added to; its outputs must hold the logits.
        weight (`float`):
            w.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains.
        target (`"sample"` or `"mean"`, *optional*, defaults to `"sample"`):
            `"sample"`: the state of one kept sample of the class. `"mean"`: the mean state of its samples in the
            batch.
        blocks (`Sequence[str]`, *optional*):
            Paths of the blocks in the bare model; by default all blocks, see [`block_paths`].
    """

    def __init__(
        self,
        objective: Objective,
        weight: float,
        adapter: str = "default",
        target: DepthTarget = "sample",
        blocks: Sequence[str] | None = None,
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.weight = weight
        self.adapter = adapter
        self.target: DepthTarget = target
        self.blocks = list(blocks) if blocks is not None else None

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        if self.blocks is None:
            self.blocks = block_paths(model)
        with captured_states(model, self.blocks) as now:
            output = self.objective.training_step(model, inputs, global_mean)
        if output.logits is None:
            raise TypeError(f"{type(self.objective).__name__} gives no logits; expected those of a classifier.")
        # As in DistillationObjective: without the wrapper for several processes, and after the other forward.
        own, labels = unwrapped(model), inputs["labels"]
        half = len(labels) // 2
        with reference_model(own, self.adapter), captured_states(own, self.blocks) as before:
            earlier = logits_of(own, inputs)
        weights = target_weights(earlier[half:], labels[:half], self.target)
        # Norms stay in float32, also under autocast.
        with torch.autocast(labels.device.type, enabled=False):
            states, targets = _readings(now, inputs), _readings(before, inputs)
            distances = depth_distances([s[half:] for s in states], [t[:half] for t in targets], weights)
        depth = distances.mean()
        if torch.is_grad_enabled() and not depth.requires_grad:
            raise InvalidInputError(
                "depth_blocks",
                self.blocks,
                "blocks whose states depend on the adapter, with a gradient",
                "Name blocks behind an adapted layer, and give activation checkpointing use_reentrant=False.",
            )
        output.loss = output.loss + self.weight * depth
        output.metrics |= {"depth": depth.detach()}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def target_weights(logits: Tensor, kept_labels: Tensor, target: DepthTarget = "sample") -> Tensor:
    """Chooses kept samples as targets: of the class with the largest logit among the classes that are there.

    Args:
        logits (`torch.Tensor`):
            Of the samples to forget, shape `(B, C)`.
        kept_labels (`torch.Tensor`):
            Classes of the kept samples, int64, shape `(K,)`.
        target (`"sample"` or `"mean"`, *optional*, defaults to `"sample"`):
            One sample of that class, drawn from torch's global generator, or all of them.

    Returns:
        `torch.Tensor`: float32, shape `(B, K)`: the weight of each kept sample. Each row adds up to 1.
    """
    of_class = logits.float()[:, kept_labels]
    fits = of_class == of_class.max(1, keepdim=True).values
    if target == "mean":
        return fits / fits.sum(1, keepdim=True)
    drawn = torch.where(fits, torch.rand_like(of_class), -1.0).argmax(1)
    return F.one_hot(drawn, len(kept_labels)).float()


def depth_distances(states: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Mean squared distance of normed states from the weighted mean of normed targets.

    Args:
        states (`Sequence[torch.Tensor]`):
            States of the samples to forget, one tensor `(B, width)` for each reading.
        targets (`Sequence[torch.Tensor]`):
            States of the kept samples, `(K, width)`, of the same readings.
        weights (`torch.Tensor`):
            Shape `(B, K)`, see [`target_weights`].

    Returns:
        `torch.Tensor`: float32, shape `(number of readings,)`: about 2 for states that have nothing in common.
    """
    return torch.stack(
        [(_normed(now) - weights @ _normed(kept)).square().mean() for now, kept in zip(states, targets, strict=True)]
    )


def _normed(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])


def _readings(captured: CapturedStates, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The states of a batch behind every block, by each way to read them, float32, shape `(B, width)`."""
    mask = inputs.get("attention_mask")
    found = [captured.pooled(kind, mask) for kind in _POOLINGS]
    return [states[path] for path in captured.paths for states in found]


def with_depth(objective: Objective, model: nn.Module, args: LossArguments, task: Task) -> Objective:
    """Wraps a classifier's objective in a [`DepthObjective`] if its weight is not 0.

    Raises:
        InvalidInputError: If the weight is not 0 and the model's own weights train instead of an adapter, no block is
            found, or `depth_blocks` matches none.
    """
    if not args.depth_weight:
        return objective
    if task.adapter is None:
        raise no_depth(args.depth_weight, "the model's own weights train, and the earlier model is gone")
    blocks = block_paths(model)
    if args.depth_blocks != "auto":
        pattern = compiled_pattern(args.depth_blocks, "depth_blocks")
        chosen = [path for path in blocks if pattern.search(path)]
        if not chosen:
            raise InvalidInputError("depth_blocks", args.depth_blocks, f"a pattern that fits one of {blocks}")
        blocks = chosen
    return DepthObjective(objective, args.depth_weight, task.adapter, args.depth_target, blocks)


def no_depth(weight: float, why: str) -> InvalidInputError:
    """The error for a depth weight that cannot be used."""
    return InvalidInputError("depth_weight", weight, f"0: {why}", "Leave it out.")
