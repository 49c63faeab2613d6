"""The entry of a task whose training is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..storage import sha256_of
from .curves import TrainingRecord
from .entry import TaskEntry
from .layout import TASKS_FOLDER, task_folder
from .request import utc_now
from .task import PlannedTask
from .versions import library_versions


def finished_entry(
    folder: Path,
    task: PlannedTask,
    training: TrainingRecord,
    scores: dict[str, Any],
    outcome: dict[str, Any],
    label_names: Sequence[str] | None,
) -> TaskEntry:
    """What the ledger records of a task, with the hashes of the files it has left in `folder`."""
    name, plan, start = task.name, task.plan, task.start
    files = sorted(task_folder(folder, name).iterdir())
    return TaskEntry(
        name=name,
        request=start.request,
        classes=plan["classes"],
        class_names=[label_names[c] for c in plan["classes"]] if label_names else None,
        missing_classes=plan["missing_classes"] or None,
        started_at=start.started_at,
        finished_at=utc_now(),
        sizes=training.sizes,
        settings=plan["settings"],
        versions=library_versions(),
        files={f"{TASKS_FOLDER}/{name}/{path.name}": sha256_of(path) for path in files},
        groups=training.groups,
        scores=scores,
        curves=training.curves,
        outcome=outcome,
    )
