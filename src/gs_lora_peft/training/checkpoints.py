"""Checkpoints: written whole or not at all, and loaded without a change to which adapters train."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer

from ..errors import InvalidInputError
from ..io import explained

STATE_FILE = "forgetting_state.json"

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # at the end of Rust's messages

# In torch's messages about a failed write.
_TORCH_ERRORS = (
    "inline_container",
    "PytorchStreamWriter",
    "iostream error",
    "file write failed",
    "Parent directory",
)

_PROBE_BYTES = 2**20


@contextmanager
def whole_checkpoint(folder: str | os.PathLike, removes: bool = True) -> Iterator[None]:
    """Removes the checkpoint that the block writes, if writing fails.

    Args:
        folder (`str` or `os.PathLike`):
            The checkpoint.
        removes (`bool`, *optional*, defaults to `True`):
            Whether this process removes it.

    Raises:
        OSError: If writing fails (disk full, no permission, ...), with the folder as its `filename`.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _error_number(error, folder)
        if number is None:
            raise
        if removes:
            shutil.rmtree(folder, ignore_errors=True)
        raise explained(OSError(number, os.strerror(number)), Path(folder)) from error


def _error_number(error: Exception, folder: str | os.PathLike) -> int | None:
    """The system's error number behind a library's error; `None` if there is none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):
        found = _OS_ERROR.search(str(error))
        return int(found[1]) if found else None
    if not any(text in str(error) for text in _TORCH_ERRORS):
        return None
    return _probed_error_number(folder) or errno.EIO


def _probed_error_number(folder: str | os.PathLike) -> int | None:
    """The system's error number of a small write, because torch does not say why its write failed."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(folder))) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno
    return None


def write_state(folder: str, state: dict[str, Any]) -> None:
    """Writes what the trainer adds to a checkpoint."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, STATE_FILE), "w") as file:
        json.dump(state, file)


def read_state(folder: str) -> dict[str, Any]:
    """Returns what [`write_state`] wrote; an empty dictionary for a checkpoint of another trainer."""
    path = os.path.join(folder, STATE_FILE)
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        return json.load(file)


def load_adapters(model: PeftModel, folder: str) -> None:
    """Loads the weights of every adapter in place, from a checkpoint of the same model.

    The Trainer calls `load_adapter`, which changes which adapters are active and train if an adapter is not named
    "default" or two are active.

    Args:
        model (`PeftModel`):
            The model, with the adapters of the saved one.
        folder (`str`):
            The checkpoint.

    Raises:
        InvalidInputError: If the checkpoint is missing or damaged, or its adapters are not those of the model. The
            model then stays as it is.
    """
    files = _adapter_files(folder)
    if set(files) != set(model.peft_config):
        raise InvalidInputError(
            "resume_from_checkpoint",
            folder,
            f"the adapters that the model holds, {sorted(model.peft_config)}; it has {sorted(files) or 'none'}",
            "Resume with a model that holds the adapters of the saved one.",
        )
    states = {name: _read(path) for name, path in files.items()}
    for name, state in states.items():
        own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        _check_same(state, own, folder, f"adapter {name!r}")
    for name, state in states.items():
        set_peft_model_state_dict(model, state, adapter_name=name)


def load_weights(model: nn.Module, folder: str) -> None:
    """Loads all weights in place, from a checkpoint of the same model.

    The Trainer compares the names in the file with those in the model, which differ for many classes of transformers,
    and skips those that it does not find.

    Args:
        model (`torch.nn.Module`):
            A model without adapters, of a class that has `from_pretrained`.
        folder (`str`):
            The checkpoint.

    Raises:
        InvalidInputError: If the checkpoint is missing or damaged, or of another architecture. The model then stays
            as it is.
    """
    if not os.path.isdir(folder):
        raise _missing(folder)
    try:
        saved = cast(Any, type(model)).from_pretrained(folder).state_dict()
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from error
    _check_same(saved, model.state_dict(), folder, "model")
    model.load_state_dict(saved)


class ResumableTrainer(Trainer):
    """transformers' Trainer for whole models, which goes on from the weights of a checkpoint, see [`load_weights`]."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(cast(nn.Module, self.model if model is None else model), resume_from_checkpoint)


def _missing(folder: str) -> InvalidInputError:
    return InvalidInputError(
        "resume_from_checkpoint", folder, "a checkpoint that exists", "Give the path of a 'checkpoint-<step>' folder."
    )


def _damaged(path: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        "resume_from_checkpoint", path, f"a whole checkpoint; it is damaged: {error}", "Resume from an earlier one."
    )


def _adapter_files(folder: str) -> dict[str, str]:
    """The file of each adapter. PEFT writes "default" to the folder itself, and others to folders of their names."""
    if not os.path.isdir(folder):
        raise _missing(folder)
    folders = {"default": folder, **{entry.name: entry.path for entry in os.scandir(folder) if entry.is_dir()}}
    paths = {name: os.path.join(path, SAFETENSORS_WEIGHTS_NAME) for name, path in folders.items()}
    return {name: path for name, path in paths.items() if os.path.isfile(path)}


def _read(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _check_same(found: dict[str, Tensor], expected: dict[str, Tensor], folder: str, name: str) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    wanted = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    if shapes == wanted:
        return
    differ = sorted(key for key in shapes.keys() | wanted.keys() if shapes.get(key) != wanted.get(key))
    saved, own = (s.get(differ[0], "absent") for s in (shapes, wanted))
    raise InvalidInputError(
        "resume_from_checkpoint",
        folder,
        f"the architecture and rank of the {name}; {len(differ)} tensors differ, e.g. {differ[0]!r}, saved: {saved}, "
        f"in the model: {own}",
        "Resume with the model that was saved, or start again in another `output_dir`.",
    )
