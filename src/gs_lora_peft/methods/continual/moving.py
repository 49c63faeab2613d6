"""The weights that a training moves, as the model multiplies by them, and how much each of them matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...compat import base_of, is_foreign
from ...errors import InvalidInputError
from ...training import Trained, TrainedAdapter
from ..importance import mean_of_gradients


class MovingWeights:
    """The weights that a training moves, as the model multiplies by them.

    They are the model's own weights that train, or, with an adapter, those of the layers it adapts: W + s·B·A. Factors
    of different tasks say nothing about each other; these weights do. With an adapter each step forms s·B·A of every
    layer.

    Args:
        trained ([`Trained`]):
            What trains.

    Attributes:
        names (`list[str]`):
            Their names in the bare model.

    Raises:
        InvalidInputError: If weights below an adapter are quantised, which have no gradient.
    """

    def __init__(self, trained: Trained):
        self.trained = trained
        self._layers: dict[str, Any] = {}
        if not isinstance(trained, TrainedAdapter):
            self.names = trained.names
            return
        for path, module in base_of(trained.model).named_modules():
            if isinstance(module, LoraLayer) and trained.adapter in module.lora_A:
                self._layers[path] = module
        self.names = [f"{path}.weight" for path in self._layers]
        for name, weight in zip(self.names, self.sources, strict=True):
            if not weight.is_floating_point() or is_foreign(weight):
                fix = "Load the model without quantisation, or use another method."
                raise InvalidInputError(name, str(weight.dtype), "a weight that is not quantised", fix)

    @property
    def sources(self) -> list[nn.Parameter]:
        """The parameters by which the gradient with respect to these weights can be taken."""
        if not self._layers:
            return self.trained.parameters
        return [layer.get_base_layer().weight for layer in self._layers.values()]

    @torch.no_grad()
    def before(self) -> list[Tensor]:
        """Returns the weights before the task, with those of its adapters that do not train."""
        if not self._layers:
            return self.trained.start
        weights = []
        for layer, weight in zip(self._layers.values(), self.sources, strict=True):
            others = [name for name in layer.active_adapters if name != self.trained.adapter and name in layer.lora_A]
            weights.append(sum((layer.get_delta_weight(name) for name in others), weight.detach()))
        return weights

    def moves(self) -> list[Tensor]:
        """Returns how far each weight is from where it was before the task, with gradient."""
        if self._layers:
            return [layer.get_delta_weight(self.trained.adapter) for layer in self._layers.values()]
        pairs = zip(self.trained.parameters, self.trained.start, strict=True)
        return [weight - start for weight, start in pairs]

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Makes the model the one before the task, with gradients of these weights, for the time of a block."""
        flags = [weight.requires_grad for weight in self.sources]
        for weight in self.sources:
            weight.requires_grad_(True)
        try:
            with self.trained.before(), torch.enable_grad():
                yield
        finally:
            for weight, flag in zip(self.sources, flags, strict=True):
                weight.requires_grad_(flag)


def importance_of(
    moving: MovingWeights,
    trainer: Any,
    score: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[Tensor, int], Tensor],
    *,
    by_sample: bool,
) -> list[Tensor]:
    """Returns how much each weight matters to the samples to keep, in the model before the task.

    Args:
        moving ([`MovingWeights`]):
            The weights.
        trainer ([`TaskTrainer`]):
            The trainer that is about to train.
        score (`Callable`):
            As in [`mean_of_gradients`].
        measure (`Callable`):
            As in [`mean_of_gradients`].
        by_sample (`bool`):
            As in [`mean_of_gradients`].
    """
    with moving.differentiable():
        retain = trainer.train_dataset.retain
        return mean_of_gradients(trainer, retain, moving.sources, score, measure, by_sample=by_sample)


class QuadraticPull:
    """Σ_k Σ_i Ω_ki · (θ_i − θ_ki)²: pulls weights to several earlier states k, each with its own importance Ω_k.

    The sum over k is one quadratic function: Ω_i = Σ_k Ω_ki, a centre, which is the mean of the θ_ki weighted by Ω_ki,
    and a constant. So memory and time of a step do not depend on the number of states.

    Args:
        names (`Sequence[str]`):
            Names of the weights.
        weights (`Sequence[torch.Tensor]`):
            The weights before the task, which are the latest state. They are not kept.
        importance (`Sequence[torch.Tensor]`):
            Their importance, of the same shape or a scalar.
        earlier (`Sequence[Mapping[str, torch.Tensor]]`, *optional*):
            Earlier states as [`state_of`] returns them. Empty ones, of tasks of other methods, do not count.

    Raises:
        InvalidInputError: If an earlier state lacks a weight.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        importance: Sequence[Tensor],
        earlier: Sequence[Mapping[str, Tensor]] = (),
    ):
        earlier = [state for state in earlier if state]  # a task of another method leaves none
        self._importance = [values.float() for values in importance]
        # How far the weights before the task are from the centre.
        self._offsets: list[Tensor] | None = None
        self._constant = torch.zeros((), device=weights[0].device)
        if earlier:
            together = [_together(*item, earlier) for item in zip(names, weights, self._importance, strict=True)]
            self._importance = [total for total, _, _ in together]
            self._offsets = [offset for _, offset, _ in together]
            self._constant = torch.stack([constant.to(self._constant.device) for *_, constant in together]).sum()

    def __call__(self, moves: Sequence[Tensor]) -> Tensor:
        """Returns the value, a scalar, for how far the weights are from where they were before the task."""
        moved = [move.float() for move in moves]
        if self._offsets is not None:
            moved = [move + offset for move, offset in zip(moved, self._offsets, strict=True)]
        pairs = zip(moved, self._importance, strict=True)
        terms = [(total * move.square()).sum().to(self._constant.device) for move, total in pairs]
        return torch.stack(terms).sum() + self._constant


def _together(
    name: str, weight: Tensor, importance: Tensor, earlier: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one weight: Σ Ω_k, the distance of the latest state from the centre, and what is left of the sum there."""
    total, first = importance.clone(), torch.zeros_like(weight, dtype=torch.float32)
    second = torch.zeros((), device=weight.device)
    for state in earlier:
        if f"weights/{name}" not in state or f"importance/{name}" not in state:
            expected = f"what earlier tasks left of {name!r}, which trains now"
            raise InvalidInputError("earlier", sorted(state), expected, "Train the same weights in every task.")
        own = state[f"importance/{name}"].to(weight.device, torch.float32)
        distance = weight.float() - state[f"weights/{name}"].to(weight.device, torch.float32)
        total, first, second = total + own, first + own * distance, second + (own * distance.square()).sum()
    offset = torch.where(total > 0, first / total, 0.0)
    return total, offset, second - (total * offset.square()).sum()


def state_of(names: Sequence[str], weights: Sequence[Tensor], importance: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns a state for later tasks: copies of the weights and of their importance, by name."""
    pairs = zip(names, weights, importance, strict=True)
    return {
        key: tensor.detach().clone().contiguous()
        for name, weight, own in pairs
        for key, tensor in ((f"weights/{name}", weight), (f"importance/{name}", own))
    }
