"""What evaluation reports, and on which weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..data.rows import NamedRows
from ..objectives import ClassRoles, Objective
from .callbacks import EMACallback


class ObjectiveEvaluation(Trainer):
    """Evaluates by what the [`Objective`] of a kind of model takes for its loss, its answers and right answers."""

    objective: Objective

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> DataLoader:
        stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        if description != "Training" and hasattr(dataset, "__len__") and not stream:
            dataset = NamedRows(dataset, "the evaluation set")
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if outputs is not None and labels is not None:
            outputs, labels = self.objective.scoring.gathered(outputs, labels)
        return loss, outputs, labels


class ForgettingEvaluation(ObjectiveEvaluation):
    """
    The evaluating half of [`GSLoraTrainer`]: scores by role of the class, on the moving average where there is one.

    Attributes:
        accuracy_forget_before (`dict[str, float]`): Acc_f (of a detector AP_f) before the task by evaluation set
            (`"eval"`, or `"eval_<name>"` for a dict of sets), in [0, 1]; Drop and H follow from it.
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
        roles: ClassRoles = {
            "forget_classes": self.forget_classes,
            "retain_classes": self.retain_classes,
            "old_classes": self.old_classes,
            "missing_classes": self.missing_classes,
        }
        scoring = self.objective.scoring
        return scoring.by_role(prediction.predictions, prediction.label_ids, roles, accuracy_forget_before)

    def score(self, dataset: Any, accuracy_forget_before: float | None = None) -> dict[str, Any]:
        """Acc_r, Acc_f, Acc_o, Acc_m, Drop and H of the model as it is now, on any labelled data; nothing is logged.

        Args:
            dataset (map-style dataset): labelled samples.
            accuracy_forget_before (`float`, *optional*): Acc_f (of a detector AP_f) before the task, for Drop and H.

        Returns:
            `dict`: as [`continual_forgetting_scores`] gives it, of a detector as [`detection_scores`].
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
        key = f"before_{self.objective.scoring.measure.key('forget')}"
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {None: self.eval_dataset}
        for name in datasets:
            output = self.evaluation_loop(
                self.get_eval_dataloader(name), description="Before training", metric_key_prefix="before"
            )
            if (accuracy := (output.metrics or {}).get(key)) is not None:
                self.accuracy_forget_before["eval" if name is None else f"eval_{name}"] = accuracy
