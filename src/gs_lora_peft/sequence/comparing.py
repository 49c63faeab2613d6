"""Whether a task was carried out with the settings that are given now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import short
from .advice import advice_to_redo
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .plain import LedgerError

Differences = dict[str, tuple[Any, Any]]  # by setting: what is recorded, and what is given
_UNORDERED = ("target_modules", "exclude_modules")
_BATCH = "per_device_train_batch_size"
_PROCESSES = "num_processes"


class OtherSettingsError(LedgerError):
    """Requests are done already, but with other settings than those that are given now.

    Attributes:
        differences (`dict[str, dict[str, tuple]]`): By task and by setting the recorded value and the given one.
    """

    differences: dict[str, Differences]


def changed_settings(
    entry: TaskEntry, settings: Mapping[str, Any], missing: Collection[int] = (), gone: Collection[int] = ()
) -> Differences:
    """The settings that were others when a task was carried out, among those that the ledger and this version know.

    How a batch is spread over processes does not count, nor does the order of module names, nor a `data_seed` that is
    `seed` anyway: the result is the same up to rounding.

    Args:
        entry ([`TaskEntry`]): The task.
        settings (`Mapping`): The present settings, as [`Recipe.settings`] gives them.
        missing (`Collection[int]`, *optional*): The classes that are kept now without training data.
        gone (`Collection[int]`, *optional*): Classes that are forgotten, perhaps later than by this task: whether they
            were missing then does not count, because they cannot be named as missing any more.
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
        differences (`Mapping`): By task, what [`changed_settings`] found.
        ledger ([`ForgettingLedger`]): Says which task can be redone.

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
        return _drawing_seed(recorded) != _drawing_seed(given)
    if name in _UNORDERED and isinstance(recorded[name], list) and isinstance(given[name], list):
        return sorted(map(str, recorded[name])) != sorted(map(str, given[name]))
    return True


def _batch_of_all(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The batch of all processes together; where it is not known, how it is spread over them."""
    batch, processes = values.get(_BATCH), values.get(_PROCESSES)
    return (batch * processes, None) if isinstance(batch, int) and isinstance(processes, int) else (batch, processes)


def _drawing_seed(values: Mapping[str, Any]) -> Any:
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
