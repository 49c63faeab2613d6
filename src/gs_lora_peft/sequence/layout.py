"""Where the files of a run are, and how large they may be."""

from __future__ import annotations

from pathlib import Path

from ..storage import StrPath

TASKS_FOLDER = "tasks"
TRAINING_CONFIG = "gs_lora_config.json"  # beside the plain adapter: what training on needs beyond it
MAX_CONFIG_BYTES = 2**24


def task_folder(folder: StrPath, name: str) -> Path:
    """Where the files of one task are."""
    return Path(folder) / TASKS_FOLDER / name
