"""Reading what tasks left, an adapter or weights, and checking it against the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ..errors import InvalidInputError
from ..io import safe_join
from ..ledger import (
    TASKS_FOLDER,
    WEIGHT_DIFFERENCE,
    FilesDifferError,
    ForgettingLedger,
    InvalidLedgerError,
    TaskEntry,
    check_separable,
    task_folder,
)
from .task_adapter import TaskAdapter, adapter_of_task, content_of
from .weight_difference import WeightDifference, parsed_difference

# What a task leaves. Both have the `name` of the task and the names of the `tensors` that change.
TaskChange = TaskAdapter | WeightDifference


def check_tasks(ledger: ForgettingLedger, names: Sequence[str]) -> None:
    """Checks that the ledger lists an adapter or weights for each task, and that the files match their SHA-256.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        names (`Sequence[str]`):
            Names of the tasks.

    Raises:
        LedgerError: If a file is not listed, or files are missing or differ.
    """
    for entry in ledger.select(list(names)):
        _check_listed(ledger, entry)
    ledger.check_files(list(names))


def read_changes(
    ledger: ForgettingLedger, tasks: int | Sequence[str] | None = None, *, each: bool = True
) -> list[TaskChange]:
    """Reads what tasks left and checks their files.

    Each file is read once: the result is made from the same bytes whose SHA-256 is checked.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        tasks (`int` or `Sequence[str]`, *optional*):
            As in [`ForgettingLedger.select`]; by default all.
        each (`bool`, *optional*, defaults to `True`):
            Whether the model after each task is needed. With `False` values that a later one of these tasks replaces
            are left out: however many tasks changed all weights, they take the memory of one model.

    Returns:
        `list[TaskChange]`: An adapter or a difference of each task, in the order of the ledger.

    Raises:
        LedgerError: As in [`check_tasks`] and [`check_separable`]; if an adapter is not plain LoRA on Linear layers or
            names another base model than the ledger; or if a file contains NaN or infinity.
    """
    entries = ledger.select(tasks)
    check_separable(ledger.tasks, [entry.name for entry in entries])
    changes = []
    for place, entry in enumerate(entries):
        change = verified_change(ledger, entry)[0]
        if isinstance(change, WeightDifference) and not each:
            # What is verified has the tensors that the ledger lists.
            later = [other.groups["active"] for other in entries[place + 1 :] if other.leaves_weights]
            change = change.without({name for names in later for name in names})
        changes.append(change)
    return changes


def read_adapters(ledger: ForgettingLedger, tasks: int | Sequence[str] | None = None) -> list[TaskAdapter]:
    """Reads the adapters of tasks, as [`read_changes`] does.

    Raises:
        InvalidInputError: If a task left weights instead of an adapter. No file is read then.
        LedgerError: As in [`read_changes`].
    """
    if weights := [entry.name for entry in ledger.select(tasks) if entry.leaves_weights]:
        raise InvalidInputError(
            "tasks",
            weights,
            "tasks that left a LoRA adapter; these left new values of the model's own weights",
            "Load them with load_forgotten, or write a full model with merge_forgotten.",
        )
    return [change for change in read_changes(ledger, tasks) if isinstance(change, TaskAdapter)]


def verified_change(ledger: ForgettingLedger, entry: TaskEntry) -> tuple[TaskChange, dict[str, bytes]]:
    """Reads what one task left, which may be revoked, and checks its files.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        entry ([`TaskEntry`]):
            The task.

    Returns:
        `tuple[TaskChange, dict[str, bytes]]`: The adapter or the difference, and the content of the files by their
        names in the task's folder.

    Raises:
        LedgerError: As in [`read_changes`].
    """
    _check_listed(ledger, entry)
    contents, problems = {}, {}
    for name, digest in entry.files.items():
        try:
            content = content_of(safe_join(ledger.folder, name))
        except (OSError, ValueError) as error:
            problems[name] = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            continue
        contents[Path(name).name] = content
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            problems[name] = f"changed: SHA-256 recorded {digest[:12]}..., found {found[:12]}..."
    if problems:
        raise FilesDifferError.of(ledger.folder, problems)
    change = _parsed(ledger, entry.name, contents)
    # The ledger alone tells which tasks can be left out, see `check_separable`.
    if entry.leaves_weights and sorted(change.tensors) != sorted(entry.groups.get("active", ())):
        expected = f"the {len(change.tensors)} tensors in '{WEIGHT_DIFFERENCE}'"
        raise InvalidLedgerError(f"{entry.name}.groups.active", entry.groups.get("active"), expected)
    return change, contents


def new_change(ledger: ForgettingLedger, name: str) -> tuple[TaskChange, dict[str, str]]:
    """Reads what a task left that is about to be added to the ledger.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger.
        name (`str`):
            Name of the new task.

    Returns:
        `tuple[TaskChange, dict[str, str]]`: The adapter or the difference, and the SHA-256 of the files by their paths
        relative to the ledger's folder. Both come from the same bytes.

    Raises:
        LedgerError: If it is not plain LoRA on Linear layers, nor finite weights.
        OSError: If a file cannot be read.
    """
    contents = {path.name: content_of(path) for path in sorted(task_folder(ledger.folder, name).iterdir())}
    files = {f"{TASKS_FOLDER}/{name}/{file}": hashlib.sha256(raw).hexdigest() for file, raw in contents.items()}
    return _parsed(ledger, name, contents), files


def _check_listed(ledger: ForgettingLedger, entry: TaskEntry) -> None:
    kinds = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME)
    needed = [f"{TASKS_FOLDER}/{entry.name}/{name}" for name in kinds]
    is_whole = len(entry.files) == 1 if entry.leaves_weights else all(name in entry.files for name in needed)
    if not is_whole:
        expected = f"{needed}: an adapter in safetensors and its configuration; or '{WEIGHT_DIFFERENCE}' alone"
        fix = f"'{ledger.path}' is not accepted. Fetch a clean copy of the folder."
        raise InvalidLedgerError(f"{entry.name}.files", list(entry.files), expected, fix)


def _parsed(ledger: ForgettingLedger, name: str, contents: Mapping[str, bytes]) -> TaskChange:
    if WEIGHT_DIFFERENCE in contents:
        return parsed_difference(task_folder(ledger.folder, name), contents[WEIGHT_DIFFERENCE])
    return adapter_of_task(ledger, name, contents)
