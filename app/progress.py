"""What a visitor sees of a training while it runs, and how the training of one who has left is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback


class VisitEnded(Exception):
    """Stops the training of a visitor who has left."""


@dataclass
class Progress:
    """How far a training is.

    Args:
        rows (`list[dict]`):
            What the trainer logged so far: losses, accuracies in [0, 1], and the norm of every block.
        share (`float`):
            Share of the steps, in [0, 1].
    """

    rows: list[dict[str, float]]
    share: float


class Reporter(TrainerCallback):
    """Tells what the trainer logs, and stops the training of a visitor who has left.

    Args:
        report (`Callable[[Progress], None]`):
            Gets the progress so far, at each log.
        ended (`threading.Event`):
            Set when the visit is over.
    """

    def __init__(self, report: Callable[[Progress], None], ended: threading.Event):
        self.report, self.ended = report, ended
        self.rows: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ended.is_set():
            raise VisitEnded

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "retain_loss" in logs:
            self.rows.append({**logs, "step": state.global_step})
            self.report(Progress(list(self.rows), state.global_step / max(state.max_steps, 1)))
