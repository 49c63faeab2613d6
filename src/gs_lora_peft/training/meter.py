"""Running means of what a joint forward reports, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..objectives import ObjectiveOutput


class LossMeter:
    """Sums the parts of the loss on the device, without a host synchronisation."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0
        self._finite: Tensor | None = None

    def add(self, output: ObjectiveOutput) -> None:
        """Add one micro-batch."""
        parts = {"retain_loss": output.retain_loss, "forget_loss": output.forget_loss, **output.metrics}
        self.names = tuple(parts)
        values = torch.stack([part.float() for part in parts.values()])
        finite = torch.isfinite(torch.cat([values[:2], output.loss.detach().float().reshape(1)]))
        self._sum = values if self._sum is None else self._sum + values
        self._finite = finite if self._finite is None else self._finite & finite
        self._count += 1

    def finite(self) -> Tensor:
        """Whether L_retain, L_forget and the loss of this process were finite since the last call: bool, `(3,)`."""
        finite, self._finite = self._finite, None
        return finite if finite is not None else torch.ones(3, dtype=torch.bool)

    def sums(self) -> tuple[tuple[str, ...], Tensor | None, int]:
        """The names, the sums since the last means and how many micro-batches they are of; nothing is fetched."""
        return self.names, self._sum, self._count

    def put_back(self, names: Sequence[str], sums: Tensor | None, count: int) -> None:
        """Go on from what [`~LossMeter.sums`] gave."""
        self.names, self._sum, self._count = tuple(names), sums, count

    def means(self) -> Tensor | None:
        """Means since the last call, in the order of `names`, on the device."""
        if self._sum is None:
            return None
        means, self._sum, self._count = self._sum / self._count, None, 0
        return means
