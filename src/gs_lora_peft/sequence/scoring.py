"""Accuracy of a bare model on named sets of classes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor, Trainer, TrainingArguments, default_data_collator

from ..data import ImageCollator


def score_classes(
    model: nn.Module,
    dataset: Dataset,
    class_sets: Mapping[str, Sequence[int]],
    *,
    rest: str,
    args: TrainingArguments,
    label_column: str = "label",
    processing_class: Any = None,
    data_collator: Any = None,
    **_: Any,
) -> dict[str, float]:
    """Accuracy on each set of classes, and under the name `rest` on all classes that are in none.

    Args:
        model (`torch.nn.Module`): a classifier that returns `logits`.
        dataset (`datasets.Dataset`): labelled samples.
        class_sets (`Mapping[str, Sequence[int]]`): name of a score → class ids.
        rest (`str`): name of the score of all other classes.
        args (`TrainingArguments`): batch size, device and precision of the evaluation.

    Returns:
        `dict[str, float]`: accuracies in [0, 1]; sets without samples are left out.
    """
    if data_collator is None:
        is_image = isinstance(processing_class, BaseImageProcessor)
        data_collator = ImageCollator(processing_class, label_column=label_column) if is_image else default_data_collator
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=args.per_device_eval_batch_size,
            use_cpu=args.use_cpu,
            bf16=args.bf16,
            fp16=args.fp16,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=args.disable_tqdm,
        )
        prediction = Trainer(model, evaluation, data_collator=data_collator).predict(dataset)
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    hits = np.asarray(logits).argmax(-1) == labels
    named = {class_id for classes in class_sets.values() for class_id in classes}
    masks = {name: np.isin(labels, list(classes)) for name, classes in class_sets.items()}
    masks[rest] = ~np.isin(labels, list(named))
    return {name: float(hits[mask].mean()) for name, mask in masks.items() if mask.any()}
