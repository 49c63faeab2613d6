"""The entry of a task whose training is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .curves import TrainingRecord
from .entry import TaskEntry
from .request import utc_now
from .task import PlannedTask
from .versions import library_versions


def finished_entry(
    task: PlannedTask,
    training: TrainingRecord,
    scores: dict[str, Any],
    outcome: dict[str, Any],
    files: dict[str, str],
    label_names: Sequence[str] | None,
) -> TaskEntry:
    """What the ledger records of a task; `files` are the hashes of what was merged, see [`~MergedModel.merge_new`]."""
    plan, start = task.plan, task.start
    return TaskEntry(
        name=task.name,
        request=start.request,
        classes=plan["classes"],
        class_names=[label_names[c] for c in plan["classes"]] if label_names else None,
        missing_classes=plan["missing_classes"] or None,
        started_at=start.started_at,
        finished_at=utc_now(),
        sizes=training.sizes,
        settings=plan["settings"],
        versions=library_versions(),
        files=files,
        groups=training.groups,
        scores=scores,
        curves=training.curves,
        outcome=outcome,
    )
