"""Opening a run for an audit: its tasks in effect, and what they left, checked against the ledger and the base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ..adapters import TaskChange, check_changes, model_identity, read_changes
from ..hub import check_bare, resolve_run_folder
from ..ledger import ForgettingLedger, InvalidLedgerError, TaskEntry


@dataclass(frozen=True)
class OpenedRun:
    """A run whose tasks in effect can be merged into the base model.

    Args:
        folder (`Path`):
            The folder of the run, or of its download.
        ledger ([`ForgettingLedger`]):
            Its ledger.
        entries (`list[TaskEntry]`):
            The tasks in effect; each names its classes.
        changes (`list[TaskChange]`):
            What they left, adapters or weights, in the same order.
    """

    folder: Path
    ledger: ForgettingLedger
    entries: list[TaskEntry]
    changes: list[TaskChange]

    @property
    def forgotten(self) -> list[int]:
        """Ids of all forgotten classes, in the order of the tasks."""
        return [class_id for entry in self.entries for class_id in entry.classes or ()]


def open_run(
    base_model: PreTrainedModel,
    run: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> OpenedRun:
    """Opens a run and checks its ledger, its files and the base model. Nothing is merged.

    Args:
        base_model (`transformers.PreTrainedModel`):
            The bare model that the run began with.
        run (`str` or `os.PathLike`):
            Folder or repository, as in [`load_forgotten`].
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].

    Raises:
        LedgerError: As [`load_forgotten`]; also if no task is in effect, or the ledger withholds the classes.
    """
    check_bare(base_model)
    folder = resolve_run_folder(run, tasks=None, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    entries = ledger.active_tasks
    if not entries or any(entry.classes is None for entry in entries):
        found = "none in effect" if not entries else "withheld classes"
        expected = "at least one task in effect, with the classes that it forgot"
        raise InvalidLedgerError(f"tasks of the ledger in '{folder}'", found, expected, "Use the original folder.")
    changes = read_changes(ledger, None)
    ledger.check_base(model_identity(base_model))
    check_changes(base_model, changes)
    return OpenedRun(Path(folder), ledger, entries, changes)
