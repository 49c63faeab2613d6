"""Settings and data of a task as the ledger records them, and how they differ from the present ones."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from ..data import component
from ..errors import short
from ..ledger import ForgettingLedger, LedgerError, TaskEntry

Differences = dict[str, tuple[Any, Any]]  # name of a setting → recorded value and given value

# Settings that do not change the result: endings of their names in a processor, or their own names.
_MACHINE_SUFFIXES = ("_type", "_class", "_version", "name_or_path", "device")
_UNORDERED = ("target_modules", "exclude_modules")
_BATCH = "per_device_train_batch_size"
_PROCESSES = "num_processes"
_SPEED = ("prefix_cache", "prefix_cache_mib")  # the losses are the same bit for bit


class OtherSettingsError(LedgerError):
    """Requests were already carried out, but with other settings than those given now.

    Attributes:
        differences (`dict[str, dict[str, tuple]]`):
            Name of a task → name of a setting → recorded value and given value.
    """

    differences: dict[str, Differences]


def changed_settings(
    entry: TaskEntry, settings: Mapping[str, Any], missing: Collection[int] = (), gone: Collection[int] = ()
) -> Differences:
    """Returns the settings of a task that differ from the present ones. Settings that the ledger lacks do not count.

    Nor do differences that change the result only by rounding: how a batch is spread over processes, the order of
    module names, and a `data_seed` equal to `seed`.

    Args:
        entry ([`TaskEntry`]):
            The task.
        settings (`Mapping[str, Any]`):
            The present settings, see [`Recipe.settings`].
        missing (`Collection[int]`, *optional*, defaults to none):
            Ids of the classes that are now kept without training data.
        gone (`Collection[int]`, *optional*, defaults to none):
            Ids of classes that this or a later task forgets. They do not count as missing, because they cannot be
            named as missing any more.
    """
    found: Differences = {}
    # The ledger records the method only if it is not GS-LoRA.
    methods = tuple(settings_of.get("method", {"name": "gs_lora"}) for settings_of in (entry.settings, settings))
    if methods[0] != methods[1]:
        found["method"] = (methods[0], methods[1])
    for part, given in settings.items():
        recorded = entry.settings.get(part)
        if part == "method" or not isinstance(recorded, Mapping):
            continue
        known = {name: (recorded[name], value) for name, value in given.items() if name in recorded}
        found |= {name: both for name, both in known.items() if both[0] != both[1] and _counts(name, recorded, given)}
        # Older ledgers record neither the data nor every class without data.
        if "train_data" in known:
            was, now = (sorted(set(classes).difference(gone)) for classes in (entry.missing_classes or (), missing))
            found |= {"missing_classes": (was, now)} if was != now else {}
    return found


def refuse_other_settings(differences: Mapping[str, Differences], ledger: ForgettingLedger) -> None:
    """Checks that no completed task has other settings.

    Args:
        differences (`Mapping[str, Differences]`):
            Name of a task → result of [`changed_settings`].
        ledger ([`ForgettingLedger`]):
            The ledger, for advice on redoing a task.

    Raises:
        OtherSettingsError: If a task has other settings.
    """
    if differing := {name: found for name, found in differences.items() if found}:
        raise OtherSettingsError(_message(differing, ledger), differences=differing)


def redo_advice(ledger: ForgettingLedger, name: str) -> str:
    """Returns the calls that carry out a task again: revoke the later tasks, then redo this one.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        name (`str`):
            Name of a task in effect.
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
        f"{calls} (or `{commands}`), then {redo}; run() with all requests, as the examples call it, then carries out "
        "the revoked ones again"
    )


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Formats differences: `learning_rate was 0.05 and is 0.01; r was 4 and is 8`."""
    return "; ".join(f"{name} was {short(was)} and is {short(given)}" for name, (was, given) in differences.items())


def _counts(name: str, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a difference of a setting can change the result."""
    if name in _SPEED:
        return False
    if name in (_BATCH, _PROCESSES):
        return _batch_of_all(recorded) != _batch_of_all(given)
    if name == "data_seed":
        return _sampling_seed(recorded) != _sampling_seed(given)
    if name in _UNORDERED and isinstance(recorded[name], list) and isinstance(given[name], list):
        return sorted(map(str, recorded[name])) != sorted(map(str, given[name]))
    return True


def _batch_of_all(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the batch size of all processes together; if unknown, the two settings."""
    batch, processes = values.get(_BATCH), values.get(_PROCESSES)
    return (batch * processes, None) if isinstance(batch, int) and isinstance(processes, int) else (batch, processes)


def _sampling_seed(values: Mapping[str, Any]) -> Any:
    return values["data_seed"] if values["data_seed"] is not None else values.get("seed")


def _message(differences: Mapping[str, Differences], ledger: ForgettingLedger) -> str:
    alike: dict[str, list[str]] = {}
    for name, found in differences.items():
        alike.setdefault(describe_differences(found), []).append(name)
    lines = [f"{', '.join(names)}: {text}." for text, names in alike.items()]
    first = next(entry.name for entry in ledger.active_tasks if entry.name in differences)
    return (
        "these requests were already carried out, but with other settings:\n  "
        + "\n  ".join(lines)
        + "\nNothing was changed. Use the former settings; or keep these tasks and use the new settings for the next "
        "ones: run(requests, keep=True), in the examples --keep; or carry out requests again with the new settings: "
        f"{redo_advice(ledger, first)}."
    )


def data_settings(train: Dataset, trained: np.ndarray, test: Dataset, scored: np.ndarray) -> dict[str, str]:
    """Returns the record of the data sets, see [`data_identity`].

    Args:
        train (`datasets.Dataset`):
            Training data.
        trained (`numpy.ndarray`):
            Class ids of the training data.
        test (`datasets.Dataset`):
            Evaluation data.
        scored (`numpy.ndarray`):
            Class ids of the evaluation data.
    """
    return {
        "train_data": data_identity(len(train), trained),
        "evaluation_data": data_identity(len(test), scored, ordered=False),
    }


def data_identity(rows: int, labels: np.ndarray, *, ordered: bool = True) -> str:
    """Returns the number of rows of a data set and a digest of its labels.

    It does not detect other samples with the same labels, or another transform: reading them all would take minutes.
    The fingerprint of `datasets` differs between machines for the same data, so it is not used.

    Args:
        rows (`int`):
            Number of rows.
        labels (`numpy.ndarray`):
            Class id of every row, or of every annotated box.
        ordered (`bool`, *optional*, defaults to `True`):
            Whether the order of the labels counts. It does for data that samples are drawn from.
    """
    content = (labels if ordered else np.sort(labels)).astype("<i8").tobytes()
    return f"{rows} rows, labels sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def processor_identity(processing_class: Any) -> str | None:
    """Returns the classes of a processor's parts and a digest of their settings; for other objects, their class.

    The settings are `to_dict()` of an image processor or a feature extractor, without names, versions and `None`, and
    the padding of a tokenizer. The vocabulary does not count, because texts are tokenised beforehand.

    Args:
        processing_class (`Any`):
            Image processor, feature extractor, tokenizer, or a processor that combines them.
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
    # transformers names the same processor with and without "Fast".
    described = {type(part).__name__.removesuffix("Fast"): _settings_of(part) for part in found.values()}
    content = json.dumps(described, sort_keys=True, default=_json_default)
    return f"{', '.join(described)}, settings sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def function_name(function: Callable | None) -> str | None:
    """Returns the qualified name of a function, or of the class of another callable."""
    if function is None:
        return None
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    # A module has the same name as a script and as an import.
    return named.__qualname__ if module in (None, "__main__") else f"{module}.{named.__qualname__}"


def _settings_of(part: Any) -> Any:
    if isinstance(part, PreTrainedTokenizerBase):
        return {"padding_side": part.padding_side, "pad_token_id": part.pad_token_id}
    return _portable_settings(part.to_dict())


def _portable_settings(value: Any) -> Any:
    """Removes settings that differ between machines or versions of transformers."""
    if not isinstance(value, Mapping):
        return value
    return {
        str(name): _portable_settings(item)
        for name, item in value.items()
        if item is not None and not str(name).startswith("_") and not str(name).endswith(_MACHINE_SUFFIXES)
    }


def _json_default(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
