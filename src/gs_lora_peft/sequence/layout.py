"""Where the files of a run are, and how large they may be."""

from __future__ import annotations

from pathlib import Path

from ..storage import StrPath, refuse_links
from .plain import LinkedRunError

LEDGER_NAME = "forgetting.json"
LOCK_NAME = "forgetting.lock"
TASKS_FOLDER = "tasks"
WORK_FOLDER = "work"
LOGS_FOLDER = "logs"
KEY_NAME = "withheld.key"  # opens what a published ledger withholds
TRAINING_CONFIG = "gs_lora_config.json"  # beside the plain adapter: what training on needs beyond it
MAX_CONFIG_BYTES = 2**24


def task_folder(folder: StrPath, name: str) -> Path:
    """Where the files of one task are."""
    return Path(folder) / TASKS_FOLDER / name


def refuse_linked_parts(folder: StrPath) -> None:
    """Checks that nothing that a run keeps in its folder is a symbolic link, see [`refuse_links`].

    Raises:
        LinkedRunError: Something is.
    """
    try:
        refuse_links(folder, (LEDGER_NAME, LOCK_NAME, KEY_NAME, TASKS_FOLDER, WORK_FOLDER, LOGS_FOLDER))
    except ValueError as error:
        raise LinkedRunError(str(error), folder=Path(folder)) from None
