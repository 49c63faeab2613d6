"""What the training logs of losses, and of what the method and its weights have to tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import TaskTrainer
from .method import Method


class TrainingLogs(TaskTrainer):
    """The part of [`ForgettingTrainer`] that adds losses, accuracies and the method's values to the Trainer's logs."""

    method: Method

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self.meter.means()) is not None:
            logs.update(self._training_logs(self.global_mean(means)))
        super().log(logs, *args, **kwargs)

    def _training_logs(self, means: Tensor) -> dict[str, float]:
        """Everything by name, in one host synchronisation."""
        own = self.method.logs()
        values = torch.cat([means, *(value.detach().float().reshape(1).to(means.device) for value in own.values())])
        return dict(zip([*self.meter.names, *own], values.tolist(), strict=True))
