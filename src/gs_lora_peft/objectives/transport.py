"""Targets for states to forget by optimal transport: each goes to kept states like it, and not all to the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidInputError

# Kept and forgotten samples that take part; more are left out at random. The matching is quadratic in them.
_SAMPLES = 1024

# A kept sample takes at most this many times its even share of the forgotten ones. Without a bound whole groups of
# forgotten samples would fall to one kept sample, and be found again as the tight cluster that they form.
_CAPACITY = 2.0

_SMOOTHING = 0.05  # of the plan, in standard deviations of the cost
_ITERATIONS = 200


class StateSample:
    """A random sample of rows of states, of bounded size, from batches that pass by.

    Args:
        size (`int`, *optional*, defaults to 1024):
            Largest number of rows that are kept.

    Attributes:
        states (`list[torch.Tensor]`):
            Of each reading, float32, shape `(N, width)`, N ≤ `size`; empty before a row was added.
    """

    def __init__(self, size: int = _SAMPLES):
        self.size = size
        self.states: list[Tensor] = []
        self._keys = torch.empty(0)
        # The same rows are drawn when a stopped training goes on, and torch's global generator stays as it is.
        self._generator = torch.Generator().manual_seed(0)

    def add(self, states: Sequence[Tensor]) -> None:
        """Adds rows: of each reading, shape `(B, width)`."""
        keys = torch.cat([self._keys, torch.rand(len(states[0]), generator=self._generator)])
        chosen = keys.topk(min(self.size, len(keys))).indices.sort().values
        joined = [torch.cat(pair) for pair in zip(self.states, states, strict=True)] if self.states else list(states)
        self.states = [state[chosen.to(state.device)] for state in joined]
        self._keys = keys[chosen]


class TransportTargets:
    r"""Gives each state to forget the states of one kept sample, by a regularised optimal transport.

    The cost of a pair is the weighted squared distance over all readings. Among all plans that move the whole mass of
    the forgotten samples, and not more than c times its even share to any kept sample, the one with the smallest cost
    less ε times its entropy has the form

    $$P_{ij} \propto \exp\left((f_i + g_j - C_{ij}) / \varepsilon\right), \qquad g_j \le 0$$

    and is found by scaling rows and columns in turn (https://arxiv.org/abs/1306.0895; the bounded columns as in
    https://arxiv.org/abs/1607.05816). g is what is kept of it: the target of any state x, seen before or not, is the
    kept sample with the smallest C(x, y_j) − g_j. So the same sample has the same target in every step.

    Args:
        kept (`Sequence[torch.Tensor]`):
            States of kept samples, of each reading, shape `(N, width)`, in units in which distances are meant.
        forgotten (`Sequence[torch.Tensor]`):
            Those of samples to forget, shape `(M, width)`.
        weights (`Sequence[float]`):
            Weight of each reading.

    Attributes:
        potentials (`torch.Tensor`):
            g, float32, shape `(N,)`, not positive.

    Raises:
        InvalidInputError: If one of the two is empty.
    """

    def __init__(self, kept: Sequence[Tensor], forgotten: Sequence[Tensor], weights: Sequence[float]):
        for name, states in (("kept", kept), ("forgotten", forgotten)):
            if not states or not len(states[0]):
                fix = "Use at most as many processes as there are samples of each half."
                raise InvalidInputError(f"{name} samples in this process", 0, "at least 1", fix)
        self.kept = list(kept)
        self.weights = list(weights)
        self.potentials = _potentials(self._costs(forgotten))

    def of(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The targets of states as they were before the task: of each reading, shape `(B, width)`."""
        chosen = (self._costs(states) - self.potentials).argmin(1)
        return [kept[chosen] for kept in self.kept]

    def _costs(self, states: Sequence[Tensor]) -> Tensor:
        """C, float32, shape `(B, N)`."""
        pairs = zip(self.weights, states, self.kept, strict=True)
        total = sum(weight * torch.cdist(one, kept).square() / kept.shape[1] for weight, one, kept in pairs)
        return torch.as_tensor(total) / sum(self.weights)


def _potentials(costs: Tensor) -> Tensor:
    """The potentials g for costs of shape `(M, N)`."""
    rows, columns = costs.shape
    potentials = costs.new_zeros(columns)
    smoothing = _SMOOTHING * float(costs.std(correction=0))
    if not smoothing:
        return potentials
    row_mass, capacity = -math.log(rows), math.log(_CAPACITY / columns)
    for _ in range(_ITERATIONS):
        of_rows = smoothing * (row_mass - torch.logsumexp((potentials - costs) / smoothing, 1))
        of_columns = torch.logsumexp((of_rows[:, None] - costs) / smoothing, 0)
        potentials = (smoothing * (capacity - of_columns)).clamp(max=0)
    return potentials
