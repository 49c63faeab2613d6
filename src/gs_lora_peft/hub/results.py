"""The `model-index` of a card: scores in the form that the Hub reads."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult

from ..sequence import TaskEntry
from .scored import revoked_since

_SPLITS = {"forget": "forgotten classes", "retain": "kept classes", "old": "classes forgotten by earlier tasks"}


def evaluation_results(entries: Sequence[TaskEntry], *, task_type: str, dataset: str | None) -> list[EvalResult]:
    """One result for each task and each of forgotten, kept and earlier forgotten classes, where there are scores.

    Tasks that were revoked, and those that were scored with a task that was revoked since, have none: no model with
    these scores can be loaded from what is published.

    Args:
        entries (`Sequence[TaskEntry]`): All tasks, the revoked ones too.
        task_type (`str`): The kind of task as the Hub calls it, e.g. `"image-classification"`.
        dataset (`str`, *optional*): Hub id of the data set.
    """
    results = []
    for entry in entries:
        if entry.status == "revoked" or revoked_since(entry, entries):
            continue
        after, data = entry.scores.get("after", {}), entry.scores.get("data")
        for split, classes in _SPLITS.items():
            metrics = [("accuracy", "Accuracy", after.get(f"acc_{split}"))]
            if split == "forget":
                metrics.append(("h_mean", "H (harmonic mean of Acc_r and the drop of Acc_f)", after.get("h_mean")))
            results += [
                EvalResult(
                    task_type=task_type,
                    dataset_type=dataset or "unknown",
                    dataset_name=f"{dataset or 'Evaluation data'}, {entry.name}: {classes}",
                    dataset_config=f"{entry.name}_{split}",
                    dataset_split=data if isinstance(data, str) else None,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 4),
                )
                for metric, name, value in metrics
                if value is not None
            ]
    return results
