"""What the training logs of losses and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from ..tuner import LoraGroups
from .arguments import GSLoraTrainingArguments
from .callbacks import SparsityCallback
from .meter import LossMeter


class TrainingLogs(Trainer):
    """The part of [`GSLoraTrainer`] that adds losses, accuracies and groups to the Trainer's logs."""

    args: GSLoraTrainingArguments
    groups: LoraGroups
    meter: LossMeter
    sparsity: SparsityCallback

    def _global_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="mean") if self.args.world_size > 1 else tensor

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self.meter.means()) is not None:
            logs.update(self._training_logs(self._global_mean(means)))
        super().log(logs, *args, **kwargs)

    def _training_logs(self, means: torch.Tensor) -> dict[str, float]:
        """Losses, accuracies, the sparsity term, active groups and every group's norm, in one host synchronisation."""
        of_groups = torch.cat(
            [self.groups.norms(), self.groups.changed().sum(dtype=torch.float32, dim=0, keepdim=True)]
        )
        *values, active = torch.cat([means, of_groups.to(means.device)]).tolist()
        names = [*self.meter.names, *(f"group_norm/{name}" for name in self.groups.names)]
        return {
            **dict(zip(names, values, strict=True)),
            "sparsity_term": self._sparsity_term(values[len(self.meter.names) :]),
            "active_groups": active,
        }

    def _sparsity_term(self, norms: Sequence[float]) -> float:
        """α · Σ ‖g‖, with the factor √n_g that the proximal step gives each group."""
        if self.args.sparsity == "none":
            return 0.0
        scales = [size**0.5 if self.args.sparsity == "proximal" else 1.0 for size in self.groups.sizes]
        weight = self.sparsity.weight_now(self.args, self.state)
        return weight * sum(scale * norm for scale, norm in zip(scales, norms, strict=True))
