"""The `model-index` of a card: scores in the form that the Hub reads."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult

from ..metrics.measures import ACCURACY, AVERAGE_PRECISION
from ..sequence import TaskEntry
from ..sequence.table import measure_of_tasks
from ..storage import visible
from .scored import revoked_since

# What the Hub calls a measure, and how it is written.
METRICS = {ACCURACY: ("accuracy", "Accuracy"), AVERAGE_PRECISION: ("mAP", "AP@[.5:.95]")}
_SPLITS = {"forget": "classes to forget", "retain": "kept classes", "old": "classes forgotten by earlier tasks"}


def evaluation_results(entries: Sequence[TaskEntry], *, task_type: str, dataset: str | None) -> list[EvalResult]:
    """One result for each task and each of forgotten, kept and earlier forgotten classes, where there are scores.

    Tasks that were revoked, and those that were scored with a task that was revoked since, have none: no model with
    these scores can be loaded from what is published.

    Args:
        entries (`Sequence[TaskEntry]`): All tasks, the revoked ones too.
        task_type (`str`): The kind of task as the Hub calls it, e.g. `"image-classification"`.
        dataset (`str`, *optional*): Hub id of the data set.
    """
    measure = measure_of_tasks(entries)
    results = []
    for entry in entries:
        if entry.status == "revoked" or revoked_since(entry, entries):
            continue
        after, data = entry.scores.get("after", {}), entry.scores.get("data")
        for split, classes in _SPLITS.items():
            metrics = [(*METRICS[measure], after.get(measure.key(split)))]
            if split == "forget":
                kept, gone = measure.symbol_of("retain"), measure.symbol_of("forget")
                metrics.append(("h_mean", f"H (harmonic mean of {kept} and the drop of {gone})", after.get("h_mean")))
            results += [
                EvalResult(
                    task_type=task_type,
                    dataset_type=dataset or "unknown",
                    dataset_name=f"{dataset or 'Evaluation data'}, {entry.name}: {classes}",
                    dataset_config=f"{entry.name}_{split}",
                    dataset_split=visible(data) if isinstance(data, str) else None,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 4),
                )
                for metric, name, value in metrics
                if value is not None
            ]
    return results
