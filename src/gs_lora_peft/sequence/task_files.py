"""Which files a task may list."""

from __future__ import annotations

from .entry import TaskEntry
from .layout import TASKS_FOLDER, TRAINING_CONFIG
from .plain import LedgerError

_NAMES = ("adapter_config.json", "adapter_model.safetensors", TRAINING_CONFIG)  # PEFT's, whose import takes seconds


def listed_files(entry: TaskEntry, of: str) -> list[str]:
    """The files that the ledger lists for a task, before any of them is downloaded or published.

    Args:
        entry ([`TaskEntry`]): The task.
        of (`str`): Whose ledger it is, for the error.

    Raises:
        LedgerError: It lists a file that a task does not have.
    """
    known = {f"{TASKS_FOLDER}/{entry.name}/{name}" for name in _NAMES}
    if odd := sorted(set(entry.files) - known):
        raise LedgerError(
            f"the ledger of {of!r} lists {odd} under {entry.name}; only {sorted(known)} belong to a task. No file is "
            "downloaded or published. Do not use this ledger."
        )
    return sorted(entry.files)
