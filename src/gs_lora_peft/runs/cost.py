"""The cost of a training: time and memory, also over several attempts."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..io import write_json_atomic
from ..training import ForgettingTrainer

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

COST_FILE = "cost.json"
_STATUS = Path("/proc/self/status")


class CostMeter(TrainerCallback):
    """Measures wall-clock time and peak memory of a training. Checkpoints hold them, so that a resumed one adds up.

    Args:
        checkpoint (`str`, *optional*):
            The checkpoint that the training resumes from.
    """

    def __init__(self, checkpoint: str | None = None):
        self._seconds, self._peak = 0.0, 0
        if checkpoint is not None:
            try:
                found = json.loads(Path(checkpoint, COST_FILE).read_bytes())
                self._seconds, self._peak = float(found["seconds"]), int(found["peak_bytes"])
            except (OSError, ValueError, KeyError, TypeError):  # killed before it was written: unknown
                pass
        self._started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if args.should_save and folder.is_dir():
            write_json_atomic(folder / COST_FILE, self._measured(args))

    def cost(self, trainer: ForgettingTrainer) -> dict[str, Any]:
        """Returns the cost of a finished training, as [`TaskEntry`] records it, of this process."""
        trainable = sum(parameter.numel() for parameter in trainer.trained.parameters)
        return {"trainable": trainable, **self._measured(trainer.args)}

    def _measured(self, args: TrainingArguments) -> dict[str, Any]:
        seconds = self._seconds + time.monotonic() - self._started
        return {"seconds": round(seconds, 3), "peak_bytes": max(self._peak, peak_bytes(args.device))}


def peak_bytes(device: torch.device) -> int:
    """Returns the most memory: allocated on a CUDA device, or resident in this process since its start; 0 if unknown.

    Args:
        device (`torch.device`):
            Where the model is.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux. getrusage would begin with the peak of the process that started this one.
    if _STATUS.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
