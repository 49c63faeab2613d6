"""Whether a task was carried out with the settings and the data that are given now."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from ..data import component
from ..errors import short
from ..ledger import ForgettingLedger, LedgerError, TaskEntry

# Endings of the names of settings that say nothing of what comes out.
_OF_MACHINE = ("_type", "_class", "_version", "name_or_path", "device")


def data_settings(train: Dataset, trained: np.ndarray, test: Dataset, scored: np.ndarray) -> dict[str, str]:
    """What the ledger records of the data; each data set is given with its labels, see [`data_identity`]."""
    return {
        "train_data": data_identity(len(train), trained),
        "evaluation_data": data_identity(len(test), scored, ordered=False),
    }


def data_identity(rows: int, labels: np.ndarray, *, ordered: bool = True) -> str:
    """The number of rows of a data set, and a digest of its labels.

    Other samples under the same labels are not noticed, nor is another transform: reading them all would take minutes.
    The fingerprint that `datasets` keeps is not used, because the same data have another one on another machine.

    Args:
        rows (`int`):
            How many rows there are.
        labels (`numpy.ndarray`):
            The class of every row, or of every annotated box.
        ordered (`bool`, *optional*, defaults to `True`):
            Whether the order of the labels matters, as it does where samples are drawn from them.
    """
    content = (labels if ordered else np.sort(labels)).astype("<i8").tobytes()
    return f"{rows} rows, labels sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def processor_identity(processing_class: Any) -> str | None:
    """The kinds of the parts of a processor, and a digest of their settings; of anything else its kind.

    Settings are what `to_dict()` of an image processor and a feature extractor says, without names, versions and what
    is `None`, and how a tokenizer pads. The vocabulary of a tokenizer is left out: texts are tokenised before.
    """
    if processing_class is None:
        return None
    parts = {
        "image_processor": BaseImageProcessor,
        "feature_extractor": SequenceFeatureExtractor,
        "tokenizer": PreTrainedTokenizerBase,
    }
    found: dict[int, Any] = {}
    for name, kind in parts.items():
        if (part := component(processing_class, name, kind)) is not None:
            found[id(part)] = part
    if not found:
        return type(processing_class).__qualname__
    # transformers has called one and the same processor with and without "Fast".
    described = {type(part).__name__.removesuffix("Fast"): _settings_of(part) for part in found.values()}
    content = json.dumps(described, sort_keys=True, default=_plain)
    return f"{', '.join(described)}, settings sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def function_name(function: Any) -> str | None:
    """The qualified name of a function; of another callable that of its class."""
    if function is None:
        return None
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    # A script and its import are the same.
    return named.__qualname__ if module in (None, "__main__") else f"{module}.{named.__qualname__}"


def _settings_of(part: Any) -> Any:
    if isinstance(part, PreTrainedTokenizerBase):
        return {"padding_side": part.padding_side, "pad_token_id": part.pad_token_id}
    return _lasting(part.to_dict())


def _lasting(value: Any) -> Any:
    """Settings without those that differ from machine to machine or between versions of transformers."""
    if not isinstance(value, Mapping):
        return value
    return {
        str(name): _lasting(item)
        for name, item in value.items()
        if item is not None and not str(name).startswith("_") and not str(name).endswith(_OF_MACHINE)
    }


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def advice_to_redo(ledger: ForgettingLedger, name: str) -> str:
    """The calls that carry a task in effect out again: those that revoke what came later, then the one that redoes it.

    Args:
        ledger ([`ForgettingLedger`]):
            The run.
        name (`str`):
            A task in effect.
    """
    redo = f"redo({name!r}), in the examples --redo {name}"
    names = [entry.name for entry in ledger.active_tasks]
    later = names[names.index(name) + 1 :][::-1]
    if not later:
        return redo
    calls = ", ".join(f"revoke({other!r})" for other in later)
    folder = shlex.quote(str(ledger.folder))
    commands = "; ".join(f"gs-lora revoke {folder} {other}" for other in later)
    return (
        f"{calls} (or `{commands}`), then {redo}; run() with all requests, as the examples do, then carries the "
        "revoked ones out again"
    )


Differences = dict[str, tuple[Any, Any]]  # by setting: what is recorded, and what is given


_UNORDERED = ("target_modules", "exclude_modules")


_BATCH = "per_device_train_batch_size"


_PROCESSES = "num_processes"


class OtherSettingsError(LedgerError):
    """Requests are done already, but with other settings than those that are given now.

    Attributes:
        differences (`dict[str, dict[str, tuple]]`):
            By task and by setting the recorded value and the given one.
    """

    differences: dict[str, Differences]


def changed_settings(
    entry: TaskEntry, settings: Mapping[str, Any], missing: Collection[int] = (), gone: Collection[int] = ()
) -> Differences:
    """The settings that were others when a task was carried out, among those that the ledger and this version know.

    How a batch is spread over processes does not count, nor does the order of module names, nor a `data_seed` that is
    `seed` anyway: the result is the same up to rounding.

    Args:
        entry ([`TaskEntry`]):
            The task.
        settings (`Mapping`):
            The present settings, as [`Recipe.settings`] gives them.
        missing (`Collection[int]`, *optional*):
            The classes that are kept now without training data.
        gone (`Collection[int]`, *optional*):
            Classes that are forgotten, perhaps later than by this task: whether they were missing then does not count,
            because they cannot be named as missing any more.
    """
    found: Differences = {}
    # Only a method other than GS-LoRA is recorded.
    methods = tuple(settings_of.get("method", {"name": "gs_lora"}) for settings_of in (entry.settings, settings))
    if methods[0] != methods[1]:
        found["method"] = (methods[0], methods[1])
    for part, given in settings.items():
        recorded = entry.settings.get(part)
        if part == "method" or not isinstance(recorded, Mapping):
            continue
        known = {name: (recorded[name], value) for name, value in given.items() if name in recorded}
        found |= {name: both for name, both in known.items() if both[0] != both[1] and _counts(name, recorded, given)}
        # Older ledgers, which do not tell the data, do not list every class without data either.
        if "train_data" in known:
            was, now = (sorted(set(classes).difference(gone)) for classes in (entry.missing_classes or (), missing))
            found |= {"missing_classes": (was, now)} if was != now else {}
    return found


def refuse_other_settings(differences: Mapping[str, Differences], ledger: ForgettingLedger) -> None:
    """Refuses to pass over tasks that were carried out with other settings.

    Args:
        differences (`Mapping`):
            By task, what [`changed_settings`] found.
        ledger ([`ForgettingLedger`]):
            Says which task can be redone.

    Raises:
        OtherSettingsError: There is a difference.
    """
    if differing := {name: found for name, found in differences.items() if found}:
        raise OtherSettingsError(_message(differing, ledger), differences=differing)


def described(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in words: `learning_rate was 0.05 and is 0.01; r was 4 and is 8`."""
    return "; ".join(f"{name} was {short(was)} and is {short(given)}" for name, (was, given) in differences.items())


def _counts(name: str, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a setting that differs can change the result."""
    if name in (_BATCH, _PROCESSES):
        return _batch_of_all(recorded) != _batch_of_all(given)
    if name == "data_seed":
        return _sampling_seed(recorded) != _sampling_seed(given)
    if name in _UNORDERED and isinstance(recorded[name], list) and isinstance(given[name], list):
        return sorted(map(str, recorded[name])) != sorted(map(str, given[name]))
    return True


def _batch_of_all(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The batch of all processes together; where it is not known, how it is spread over them."""
    batch, processes = values.get(_BATCH), values.get(_PROCESSES)
    return (batch * processes, None) if isinstance(batch, int) and isinstance(processes, int) else (batch, processes)


def _sampling_seed(values: Mapping[str, Any]) -> Any:
    return values["data_seed"] if values["data_seed"] is not None else values.get("seed")


def _message(differences: Mapping[str, Differences], ledger: ForgettingLedger) -> str:
    alike: dict[str, list[str]] = {}
    for name, found in differences.items():
        alike.setdefault(described(found), []).append(name)
    lines = [f"{', '.join(names)}: {text}." for text, names in alike.items()]
    first = next(entry.name for entry in ledger.active_tasks if entry.name in differences)
    return (
        "these requests are done already, but with other settings:\n  "
        + "\n  ".join(lines)
        + "\nNothing was changed. Give the settings that were used before; or keep what is done and go on with the "
        "new settings, by run(requests, keep=True), in the examples --keep; or carry requests out again with the new "
        f"settings, by {advice_to_redo(ledger, first)}."
    )
