"""Running means of what a joint forward reports, kept on the device until somebody logs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objectives import ObjectiveOutput


class LossMeter:
    """Sums the parts of the loss on the device, without a host synchronisation."""

    NAMES = ("retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy")

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._finite: Tensor | None = None

    def add(self, output: ObjectiveOutput) -> None:
        """Add one micro-batch."""
        values = torch.stack([getattr(output, name).float() for name in self.NAMES])
        finite = torch.isfinite(values[:2])
        self._sum = values if self._sum is None else self._sum + values
        self._finite = finite if self._finite is None else self._finite & finite
        self._count += 1

    def finite(self) -> Tensor:
        """Whether L_retain and L_forget have been finite since the last call: bool, shape `(2,)`, on the device."""
        finite, self._finite = self._finite, None
        return finite if finite is not None else torch.ones(2, dtype=torch.bool)

    def means(self) -> Tensor | None:
        """Means since the last call, in the order of `NAMES`, on the device."""
        if self._sum is None:
            return None
        means, self._sum, self._count = self._sum / self._count, None, 0
        return means
