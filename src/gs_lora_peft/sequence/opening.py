"""Opening a folder in which a run begins or goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from .adapters import check_tasks
from .fingerprint import model_identity
from .ledger import LEDGER_NAME, ForgettingLedger
from .plain import InvalidLedgerError


def open_ledger(folder: Path, base_model: PreTrainedModel, label_names: Sequence[str] | None) -> ForgettingLedger:
    """The ledger of a folder, or a new one; only reads.

    Raises:
        LedgerError: It belongs to another base model or to other labels, was edited, or its files differ.
    """
    identity = model_identity(base_model)
    if not (folder / LEDGER_NAME).exists():
        return ForgettingLedger.create(folder, base_model=identity, label_names=label_names)
    ledger = ForgettingLedger.load(folder)
    ledger.check_base(identity)
    if label_names is not None and ledger.label_names not in (None, label_names):
        expected = f"the names in the ledger in '{folder}', in their order: an id would mean another class"
        fix = "Give the data that the run was begun with, or choose another folder."
        raise InvalidLedgerError("label_names", label_names, expected, fix)
    check_tasks(ledger, [entry.name for entry in ledger.active_tasks])
    return ledger
