"""How a training went, as the ledger records it: enough to draw it, little enough for a hundred tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from ..training import ForgettingTrainer, TrainedAdapter

CURVE_NAMES = ("epoch", "retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy", "active_groups")
# How much is known in the course of a training: of a classifier the first, of a detector the second.
KNOWN_BY = ("accuracy", "confidence")
MAX_CURVE_POINTS = 100


@dataclass(frozen=True)
class TrainingRecord:
    """What is left of the training of one task, besides its adapter.

    Args:
        groups (`dict`): As in [`TaskEntry`].
        sizes (`dict[str, int]`): Samples that were trained on, without those held out for evaluation, to `forget` and
            to `retain`; and optimizer `steps`.
        curves (`dict[str, list[float]]`, *optional*): See [`training_curves`].
    """

    groups: dict[str, Any]
    sizes: dict[str, int]
    curves: dict[str, list[float]] | None

    @classmethod
    def of(cls, trainer: ForgettingTrainer) -> TrainingRecord:
        """The record of a trainer that has finished (one host synchronisation for the groups and one for norms)."""
        groups = cast("TrainedAdapter", trainer.trained).groups
        # What changes nothing counts for nothing, whatever the norm of its lora_A.
        norms = dict(zip(groups.names, (groups.norms() * groups.changed()).tolist(), strict=True))
        pairs, state = trainer.train_dataset, trainer.state
        sizes = {"forget": len(pairs.forget), "retain": len(pairs.retain), "steps": state.global_step}
        return cls({**groups.state(), "norms": norms}, sizes, training_curves(state.log_history))


def curve_names(names: Collection[str]) -> tuple[str, ...] | None:
    """The curves that a training with logs of these names has; `None` where they are not complete."""
    for known_by in KNOWN_BY:
        wanted = tuple(name.replace("accuracy", known_by) for name in CURVE_NAMES)
        if set(wanted) <= set(names):
            return wanted
    return None


def training_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """The logged losses, accuracies and active groups of a training.

    Args:
        log_history (`Sequence[Mapping]`): What the trainer logged (`trainer.state.log_history`).

    Returns:
        `dict[str, list[float]]` or `None`: `epoch` and, at each of these moments, the means since the one before:
        `retain_loss` and `forget_loss` in nats, `retain_accuracy` and `forget_accuracy` in [0, 1] (of a detector
        `retain_confidence` and `forget_confidence`, also in [0, 1]); and the number of `active_groups`. At most 100
        evenly spread points, the first and the last among them, to six digits. `None` where nothing was logged.
    """
    names = next(filter(None, map(curve_names, log_history)), ())
    rows = [[row[name] for name in names] for row in log_history if names and all(name in row for name in names)]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if not rows:
        return None
    picked = np.unique(np.linspace(0, len(rows) - 1, MAX_CURVE_POINTS).round().astype(int))
    columns = zip(*(rows[index] for index in picked), strict=True)
    return {name: [float(f"{value:.6g}") for value in column] for name, column in zip(names, columns, strict=True)}
