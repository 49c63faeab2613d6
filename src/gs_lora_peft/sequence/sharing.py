"""What a run in sequence does with the options of `TrainingArguments` that publish."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..training import GSLoraTrainingArguments


def warn_not_pushed(args: GSLoraTrainingArguments, folder: Path) -> None:
    """Warns that `push_to_hub=True` sends nothing by itself: a run is published as a whole, when its owner says so."""
    if args.push_to_hub and args.process_index == 0:
        repo_id = args.hub_model_id or "organisation/name"
        warnings.warn(
            f"`push_to_hub`=True publishes nothing here: a run is published as a whole, when you ask for it. Call "
            f"gs_lora_peft.push_to_hub({str(folder)!r}, {repo_id!r}) after the requests.",
            stacklevel=3,
        )
