"""What a finished run leaves for another audit: its rows, and the weights that it changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ..io import staged_folder, write_json_atomic

_WEIGHTS, _ROWS = "changed.safetensors", "rows.json"
_LIMIT = 16 * 2**20  # bytes: the runs of a benchmark are hundreds

Row = dict[str, Any]


def keep_trained(folder: Path, base: nn.Module, model: nn.Module, rows: Sequence[Row]) -> None:
    """Writes the rows of a run and the weights that it changed, unless these take more than 16 MiB.

    Args:
        folder (`Path`):
            The folder, which is made.
        base (`torch.nn.Module`):
            The model before the run.
        model (`torch.nn.Module`):
            The same model afterwards, bare.
        rows (`Sequence[dict]`):
            The rows, without figures of an audit.
    """
    before = base.state_dict()
    changed = {n: own for n, own in model.state_dict().items() if not torch.equal(own, before[n])}
    if sum(own.nbytes for own in changed.values()) > _LIMIT:
        return
    with staged_folder(folder) as staged:
        save_file({name: own.detach().cpu().clone().contiguous() for name, own in changed.items()}, staged / _WEIGHTS)
        write_json_atomic(staged / _ROWS, list(rows))


def read_trained(folder: Path, fresh: PreTrainedModel) -> tuple[list[Row], PreTrainedModel] | None:
    """Returns the rows and the model of a run that was kept; `None` if it was not.

    Args:
        folder (`Path`):
            The folder.
        fresh (`transformers.PreTrainedModel`):
            A copy of the model before the run, which becomes the one after it.
    """
    if not (folder / _ROWS).is_file():
        return None
    fresh.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    return json.loads((folder / _ROWS).read_text(encoding="utf-8")), fresh.eval()
