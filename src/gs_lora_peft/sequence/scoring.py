"""What a model answers before and after a task is carried out or taken back, as the ledger records it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from ..data import ForgettingSplit
from ..metrics import continual_forgetting_scores
from ..objectives import Objective, objective_for
from .recipe import Recipe

# What accelerate's evaluation sets on a model: autocast, and a mark that would keep training from wrapping it in DDP.
_LEFT_BEHIND = ("forward", "_original_forward", "_is_accelerate_prepared")


class Scores:
    """Scores of a bare model on one data set.

    Args:
        dataset (`datasets.Dataset`): Labelled rows.
        recipe ([`Recipe`]): Batch size, device, precision and collator.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe):
        self.dataset = dataset
        self.recipe = recipe
        self._base: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def knows_base(self) -> bool:
        """Whether [`~Scores.measure_base`] was called."""
        return self._base is not None

    def measure_base(self, model: nn.Module) -> None:
        """Keeps what the base model answers, before any task, as what forgetting is compared with."""
        self._base = self._predict(model)

    def of_base(self, split: ForgettingSplit) -> dict[str, float]:
        """`acc_all` of the base model, and its `acc_retain` and `acc_missing` on the classes that a task keeps."""
        if self._base is None:
            raise RuntimeError("the base model was not measured; call measure_base first")
        predictions, labels = self._base
        sets = {"acc_retain": split.retain_classes, "acc_missing": split.missing_classes}
        kept = accuracies(predictions, labels, sets, rest="acc_other")
        return {"acc_all": float((predictions == labels).mean())} | {
            name: value for name, value in kept.items() if name in sets
        }

    def of_task(
        self, model: nn.Module, split: ForgettingSplit, accuracy_forget_before: float | None = None
    ) -> dict[str, Any]:
        """Accuracies by role of the class, as [`continual_forgetting_scores`]."""
        predictions, labels = self._predict(model)
        return continual_forgetting_scores(
            predictions,
            labels,
            forget_classes=split.forget_classes,
            retain_classes=split.retain_classes,
            old_classes=split.old_classes,
            missing_classes=split.missing_classes,
            accuracy_forget_before=accuracy_forget_before,
        )

    def of_revocation(self, model: nn.Module, revoked: Sequence[int], others: Sequence[int]) -> dict[str, float]:
        """`acc_revoked`, `acc_still_forgotten` (classes of the other tasks) and `acc_retain` (all other classes)."""
        predictions, labels = self._predict(model)
        sets = {"acc_revoked": revoked, "acc_still_forgotten": others}
        return accuracies(predictions, labels, sets, rest="acc_retain")

    def _predict(self, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        return predict_classes(model, self.dataset, self.recipe.args, self.recipe.data_collator)


def predict_classes(
    model: nn.Module, dataset: Dataset, args: TrainingArguments, data_collator: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The class a model gives to every row, and the right one.

    Args:
        model (`torch.nn.Module`): A classifier that returns `logits`; it is left in eval mode.
        dataset (`datasets.Dataset`): Labelled rows.
        args (`TrainingArguments`): Batch size, device, precision and workers of the evaluation; not changed.
        data_collator (`Callable`): As in `transformers.Trainer`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Predicted and true ids, int64, shape `(number of rows,)`, in every process.
    """
    args = copy.copy(args)
    args.eval_strategy, args.load_best_model_at_end = "no", False
    args.report_to, args.push_to_hub, args.label_names = [], False, ["labels"]
    own = {name: vars(model)[name] for name in _LEFT_BEHIND if name in vars(model)}
    with tempfile.TemporaryDirectory() as scratch:
        args.output_dir = scratch
        try:
            prediction = _Scorer(model, args, data_collator=data_collator).predict(dataset)
        finally:
            for name in _LEFT_BEHIND:
                vars(model).pop(name, None)
            vars(model).update(own)
            model.eval()
    return np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids)


def accuracies(
    predictions: np.ndarray, labels: np.ndarray, class_sets: Mapping[str, Sequence[int]], *, rest: str
) -> dict[str, float]:
    """Accuracy on each set of classes, and under the name `rest` on all classes that are in none.

    Args:
        predictions (`np.ndarray`): Predicted ids, shape `(n,)`.
        labels (`np.ndarray`): True ids, shape `(n,)`.
        class_sets (`Mapping[str, Sequence[int]]`): Name of a score → class ids.
        rest (`str`): Name of the score of all other classes.

    Returns:
        `dict[str, float]`: Fractions from 0 to 1; sets without rows are left out.
    """
    hits = predictions == labels
    named = [class_id for classes in class_sets.values() for class_id in classes]
    masks = {name: np.isin(labels, list(classes)) for name, classes in class_sets.items()}
    masks[rest] = ~np.isin(labels, named)
    return {name: float(hits[mask].mean()) for name, mask in masks.items() if mask.any()}


class _Scorer(Trainer):
    """Answers as the objective of the model has them: the model's own loss, which not every one has, is not asked."""

    objective: Objective

    def __init__(self, model: nn.Module, args: TrainingArguments, **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self.objective = objective_for(model, args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = self.objective.evaluation_step(model, inputs)
        return (loss, outputs) if return_outputs else loss
