"""Forgetting in depth: a term that makes the states of forgotten samples those of kept ones, behind every block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import is_sharded, reference_model, unwrapped
from ..errors import InvalidInputError
from ..tuner import compiled_pattern
from .base import LossArguments, Objective, ObjectiveOutput, Task
from .heads import logits_of
from .losses import DepthTarget, GlobalMean, identity
from .relearning import relearned_weights, with_weights
from .states import block_paths, captured_states, reading_weights, readings, rows_of, state_scales
from .transport import StateSample, TransportTargets


class DepthObjective(Objective):
    r"""Adds terms on the states behind every block: forgotten samples go to kept ones, and kept ones stay.

    A head that no longer answers with a class leaves its traces in the states before the head: few images and a new
    head bring the class back. A model that never saw a class takes its samples for the kept classes that they resemble
    most, in every block. The terms train towards such states:

    $$w \cdot \operatorname{mean}_{l, i} \frac{1}{d} \left\| \frac{s_l(x_i) - s_l^0(y_{j(i)})}{\sigma_l} \right\|^2
    + w_r \cdot \operatorname{mean}_{l, j} \frac{1}{d} \left\| \frac{s_l(y_j) - s_l^0(y_j)}{\sigma_l} \right\|^2$$

    l counts the blocks and the two readings of each: one token (the class token of a ViT, the last one with causal
    attention) and the mean over its tokens, which counts three times. s_l and s_l⁰ are the states of the model that
    trains and of the model before the task, both of width d, and σ_l is the standard deviation of s_l⁰ among all kept
    samples, by dimension. Without it the offset that all samples share would hide in what they differ. x_i are the
    samples to forget and y_j those to keep. With the target `"sample"`, y_{j(i)} is of that class among those in the
    half to keep to which the model before the task gives the largest logit for x_i; it is drawn anew at each step.
    With `"transport"` it is the kept sample of the whole training set that an optimal transport gives to x_i, the
    same in each step, see [`TransportTargets`]. Where samples of a class differ much, as faces under varied light do,
    drawn targets teach their mean, and forgotten samples end there in a tight cluster that gives them away. No
    gradient reaches the targets. The mean over blocks weighs the l-th block by 1 / l, because most of what later
    states tell apart is there behind the first block.

    With a radius ρ the first term counts a second time, at the weights that an attacker would have after one step of
    fine-tuning on x_i with their true labels, see [`relearned_weights`]: what a step brings back is not gone. Training
    at perturbed weights is that of https://arxiv.org/abs/2502.05374, which perturbs them against the forgetting loss;
    here all matrices of the blocks are, towards what an attacker wants.

    Each step costs one more forward, without gradient, and the training begins with a pass over the data for σ. Ranked
    by the model that trains, which would cost less, ever more samples would fall to one kept class, and the kept
    classes would suffer. Targets are samples of the same process. Under DDP the loss is the mean over processes, as
    for the other terms.

    Args:
        objective ([`Objective`]):
            The objective that the terms are added to; its outputs must hold the logits.
        weight (`float`):
            w.
        retain_weight (`float`, *optional*, defaults to 0):
            w_r.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains.
        target (`"sample"`, `"mean"` or `"transport"`, *optional*, defaults to `"sample"`):
            `"sample"`: the state of one kept sample of the class. `"mean"`: the mean state of its samples in the
            batch. `"transport"`: that of the matched kept sample.
        blocks (`Sequence[str]`, *optional*):
            Paths of the blocks in the bare model; by default all blocks, see [`block_paths`].
        forget_classes (`Sequence[int]`, *optional*, defaults to none):
            The classes to forget, which σ leaves out.
        radius (`float`, *optional*, defaults to 0):
            ρ.

    Attributes:
        scales (`list[torch.Tensor]`):
            σ of each reading, float32, shape `(width,)`; empty before [`~DepthObjective.prepare`].
        transport ([`TransportTargets`] or `None`):
            The matching, after [`~DepthObjective.prepare`], if `target` asks for it.
    """

    def __init__(
        self,
        objective: Objective,
        weight: float,
        retain_weight: float = 0.0,
        adapter: str = "default",
        target: DepthTarget = "sample",
        blocks: Sequence[str] | None = None,
        forget_classes: Sequence[int] = (),
        radius: float = 0.0,
    ):
        self.objective = objective
        self.scoring = objective.scoring
        self.weight = weight
        self.retain_weight = retain_weight
        self.adapter = adapter
        self.target: DepthTarget = target
        self.blocks = list(blocks) if blocks is not None else None
        self.forget_classes = list(forget_classes)
        self.radius = radius
        self.scales: list[Tensor] = []
        self.transport: TransportTargets | None = None

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        self.objective.prepare(model, batches, global_sum)
        if self.blocks is None:
            self.blocks = block_paths(model)
        kept, forgotten = StateSample(), StateSample()

        def collect(states: list[Tensor], counts: Tensor) -> None:
            kept.add([state[counts] for state in states])
            forgotten.add([state[~counts] for state in states])

        matched = self.target == "transport"
        self.scales = state_scales(
            model, self.blocks, batches(), self.forget_classes, global_sum, collect if matched else None
        )
        if matched:
            with torch.autocast(self.scales[0].device.type, enabled=False):
                weights = reading_weights(len(self.scales))
                self.transport = TransportTargets(self._scaled(kept.states), self._scaled(forgotten.states), weights)

    def _scaled(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Readings in units of σ."""
        return [state / scale for state, scale in zip(states, self.scales, strict=bool(states))]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        if not self.scales:
            raise RuntimeError("The scales of the states are unknown yet. Call prepare() before the first step.")
        with captured_states(model, self.blocks) as captured:
            output = self.objective.training_step(model, inputs, global_mean)
        if output.logits is None:
            raise TypeError(f"{type(self.objective).__name__} gives no logits; expected those of a classifier.")
        # As in DistillationObjective: without the wrapper for several processes, and after the other forward.
        own, labels = unwrapped(model), inputs["labels"]
        half = len(labels) // 2
        with reference_model(own, self.adapter), captured_states(own, self.blocks) as captured_before:
            earlier = logits_of(own, inputs)
        # Differences stay in float32, also under autocast.
        with torch.autocast(labels.device.type, enabled=False):
            now = self._scaled(readings(captured, inputs))
            before = self._scaled(readings(captured_before, inputs))
            targets = self._targets(before, earlier, labels)
            depth = mean_distance([s[half:] for s in now], targets)
            kept = mean_distance([s[:half] for s in now], [s[:half] for s in before])
        if torch.is_grad_enabled() and not depth.requires_grad:
            raise InvalidInputError(
                "depth_blocks",
                self.blocks,
                "blocks whose states depend on the adapter, with a gradient",
                "Name blocks behind an adapted layer.",
            )
        output.loss = output.loss + self.weight * depth + self.retain_weight * kept
        output.metrics |= {"depth": depth.detach(), "depth_retain": kept.detach()}
        if self.radius:
            relearned = self._relearned(own, rows_of(inputs, slice(half, None)), targets)
            output.loss = output.loss + self.weight * relearned
            output.metrics["depth_relearned"] = relearned.detach()
        return output

    def _relearned(self, model: nn.Module, inputs: dict[str, Any], targets: Sequence[Tensor]) -> Tensor:
        """The distance of the states from their targets at the weights after a step of relearning."""
        assert self.blocks is not None
        weights = relearned_weights(model, self.blocks, inputs, self.radius)
        with captured_states(model, self.blocks) as captured:
            with_weights(model, weights, lambda changed: logits_of(changed, inputs))
        with torch.autocast(inputs["labels"].device.type, enabled=False):
            return mean_distance(self._scaled(readings(captured, inputs)), targets)

    def _targets(self, before: list[Tensor], earlier: Tensor, labels: Tensor) -> list[Tensor]:
        """Where the states of the half to forget go, of each reading; from readings and logits before the task."""
        half = len(labels) // 2
        if self.transport is not None:
            return self.transport.of([s[half:] for s in before])
        weights = target_weights(earlier[half:], labels[:half], self.target)
        return [weights @ s[:half] for s in before]

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.objective.evaluation_step(model, inputs)


def mean_distance(states: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """The mean squared difference over dimensions and samples, then over readings, weighted by block; a scalar.

    Block l weighs 1 / l: later states follow from earlier ones, and the first block has the most to change. The mean
    over tokens weighs three times as much as the class token.
    """
    distances = [(one - other).square().mean() for one, other in zip(states, targets, strict=True)]
    weights = reading_weights(len(distances))
    total = sum((w * d for w, d in zip(weights, distances, strict=True)), torch.zeros_like(distances[0]))
    return total / sum(weights)


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


def with_depth(objective: Objective, model: nn.Module, args: LossArguments, task: Task) -> Objective:
    """Wraps a classifier's objective in a [`DepthObjective`] if its weight is not 0.

    Raises:
        InvalidInputError: If the weight is not 0 and the model's own weights train instead of an adapter, no block is
            found, `depth_blocks` matches none, or `depth_radius` cannot be used.
    """
    if not args.depth_weight:
        return objective
    if task.adapter is None:
        raise no_depth(args.depth_weight, "the model's own weights train, and the earlier model is gone")
    if args.depth_radius:
        _check_radius(model, args.depth_radius)
    blocks = chosen_blocks(block_paths(model), args.depth_blocks)
    return DepthObjective(
        objective,
        args.depth_weight,
        args.depth_retain_weight,
        task.adapter,
        args.depth_target,
        blocks,
        task.roles.forget,
        args.depth_radius,
    )


def _check_radius(model: nn.Module, radius: float) -> None:
    """Checks that the weights of a model can be replaced for one forward and its backward."""
    # Both put other weights in the place of the changed ones: gathered shards, and in the backward the old ones.
    checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in unwrapped(model).modules())
    if is_sharded(model) or checkpoints:
        expected = "0 with FSDP and with activation checkpoints"
        raise InvalidInputError("depth_radius", radius, expected, "Leave it out.")


def chosen_blocks(paths: list[str], pattern: str) -> list[str]:
    """The paths in which `depth_blocks` is found; all with `"auto"`.

    Raises:
        InvalidInputError: If it is in none of them.
    """
    if pattern == "auto":
        return paths
    compiled = compiled_pattern(pattern, "depth_blocks")
    if chosen := [path for path in paths if compiled.search(path)]:
        return chosen
    raise InvalidInputError("depth_blocks", pattern, f"a pattern that fits one of {paths}")


def no_depth(weight: float, why: str) -> InvalidInputError:
    """The error for a depth weight that cannot be used."""
    return InvalidInputError("depth_weight", weight, f"0: {why}", "Leave it out.")
