"""What a bare model answers, and how often it is right on sets of classes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments


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
    with tempfile.TemporaryDirectory() as scratch:
        args.output_dir = scratch
        prediction = _Scorer(model, args, data_collator=data_collator).predict(dataset)
    model.eval()
    return np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids)


class _Scorer(Trainer):
    """Asks the model for logits alone: its own loss, which not every classifier has, is of no use here."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        loss = nn.functional.cross_entropy(logits.float(), labels)
        return (loss, {"logits": logits}) if return_outputs else loss


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
