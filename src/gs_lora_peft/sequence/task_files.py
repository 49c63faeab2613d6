"""Which files a task may list."""

from __future__ import annotations

from .entry import TaskEntry
from .layout import TASKS_FOLDER, TRAINING_CONFIG
from .plain import InvalidLedgerError

_NAMES = ("adapter_config.json", "adapter_model.safetensors", TRAINING_CONFIG)  # PEFT's, whose import takes seconds


def listed_files(entry: TaskEntry, of: str) -> list[str]:
    """The files that the ledger lists for a task, before any of them is downloaded or published.

    Args:
        entry ([`TaskEntry`]): The task.
        of (`str`): Whose ledger it is, for the error.

    Raises:
        InvalidLedgerError: It lists a file that a task does not have.
    """
    known = {f"{TASKS_FOLDER}/{entry.name}/{name}" for name in _NAMES}
    if odd := sorted(set(entry.files) - known):
        fix = f"The ledger of {of!r} lists {odd} under {entry.name}; only these belong to a task. Do not use it."
        raise InvalidLedgerError(f"{entry.name}.files", odd, f"only {sorted(known)}", fix)
    return sorted(entry.files)
