"""What evaluation reports, and on which weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..metrics.scores import continual_forgetting_scores
from .callbacks import EMACallback


class ForgettingEvaluation(Trainer):
    """
    The evaluating half of [`GSLoraTrainer`]: accuracies by role of the class, on the moving average where there is
    one.

    Attributes:
        accuracy_forget_before (`dict[str, float]`): Acc_f before the task by evaluation set (`"eval"`, or
            `"eval_<name>"` for a dict of sets), in [0, 1]; Drop and H follow from it.
    """

    forget_classes: list[int]
    retain_classes: list[int]
    old_classes: list[int]
    missing_classes: list[int]
    ema: EMACallback | None = None
    _evaluating = "eval"  # prefix of the metrics that are being computed

    def __init__(self, *args: Any, **kwargs: Any):
        self.accuracy_forget_before: dict[str, float] = {}
        kwargs.setdefault("compute_metrics", self._scores)
        super().__init__(*args, **kwargs)

    def _scores(self, prediction: Any) -> dict[str, float]:
        scores = self._forgetting_scores(prediction, self.accuracy_forget_before.get(self._evaluating))
        return {name: value for name, value in scores.items() if value is not None}

    def _forgetting_scores(self, prediction: Any, accuracy_forget_before: float | None) -> dict[str, Any]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return continual_forgetting_scores(
            np.asarray(logits).argmax(-1),
            np.asarray(prediction.label_ids),
            forget_classes=self.forget_classes,
            retain_classes=self.retain_classes,
            old_classes=self.old_classes,
            missing_classes=self.missing_classes,
            accuracy_forget_before=accuracy_forget_before,
        )

    def score(self, dataset: Any, accuracy_forget_before: float | None = None) -> dict[str, Any]:
        """Acc_r, Acc_f, Acc_o, Acc_m, Drop and H of the model as it is now, on any labelled data; nothing is logged.

        Args:
            dataset (map-style dataset): labelled samples.
            accuracy_forget_before (`float`, *optional*): Acc_f before the task, for Drop and H.

        Returns:
            `dict`: as [`continual_forgetting_scores`] gives it.
        """
        return self._forgetting_scores(self.predict(dataset, metric_key_prefix="score"), accuracy_forget_before)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        average = self.ema if self.is_in_train else None
        self._evaluating = metric_key_prefix
        if average is not None:
            average.swap_in()
        try:
            # Iterating over data draws a random number. Left alone, dropout in training does not depend on evaluation,
            # so that a run resumed behind an evaluation goes on as the one that was not stopped.
            with torch.random.fork_rng(devices=[]):
                return super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
        finally:
            if average is not None:
                average.swap_out()

    def measure_before(self) -> None:
        """Acc_f before the task on each evaluation set, for Drop and H; nothing is logged and no callback is told."""
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        for name in datasets:
            output = self.evaluation_loop(
                self.get_eval_dataloader(name), description="Before training", metric_key_prefix="before"
            )
            if (accuracy := (output.metrics or {}).get("before_acc_forget")) is not None:
                self.accuracy_forget_before["eval" if name is None else f"eval_{name}"] = accuracy
