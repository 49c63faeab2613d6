"""Installing a fetched run into a folder, which may hold another state of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from ..errors import InvalidInputError
from ..io import StrPath, file_mismatch, safe_join, staged_folder, write_bytes_atomic
from ..ledger import (
    LEDGER_NAME,
    TASKS_FOLDER,
    DivergedRunError,
    ForgettingLedger,
    TaskEntry,
    WithheldClassesError,
    first_digits,
    task_folder,
)


def continuation_error(older: ForgettingLedger, newer: ForgettingLedger) -> str | None:
    """Says why `newer` does not continue `older`, or `None` if it does: the same base and tasks, and perhaps more.

    Tasks are the same if their files are. So it does not matter whether one of the ledgers withholds the classes. A
    task may be revoked in `newer` alone.
    """
    mine, other = older.base_model["fingerprint"], newer.base_model["fingerprint"]
    if mine != other:
        return f"it rests on other base weights ({first_digits(other)} instead of {first_digits(mine)})"
    for entry, found in zip_longest(older.tasks, newer.tasks[: len(older.tasks)]):
        if found is None or found.name != entry.name:
            return f"it lacks {entry.name}, finished at {entry.finished_at}"
        names = sorted(entry.files.keys() | found.files.keys())
        if different := [name for name in names if entry.files.get(name) != found.files.get(name)]:
            return f"its {entry.name} is another one ({', '.join(different)} differ)"
        if entry.status == "revoked" and found.status != "revoked":
            return f"its {entry.name} is not revoked"
    return None


def is_withheld(ledger: ForgettingLedger) -> bool:
    """Whether the ledger keeps the classes of a task to itself."""
    return bool(withheld_tasks(ledger))


def withheld_tasks(ledger: ForgettingLedger) -> list[str]:
    """The tasks whose classes the ledger keeps to itself."""
    return [entry.name for entry in ledger.tasks if entry.classes is None]


def check_free(folder: StrPath) -> None:
    """Checks that a folder can be made, or is there and empty, before what is to go there is made.

    Raises:
        ValueError: It holds files, is none, or is the working directory: a folder is put into its place as a whole, so
            that a process that works in it would be left in one that is gone.
    """
    target = Path(folder)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        fix = f"'{target}' exists already: choose another."
        raise InvalidInputError("folder", str(target), "a free path or an empty folder", fix)
    _check_elsewhere(target)


def _check_elsewhere(target: Path) -> None:
    if os.path.realpath(target) == os.path.realpath("."):
        raise ValueError(f"'{target}' is the working directory; expected a folder to be made. Name a new one in it.")


def install_run(ledger: ForgettingLedger, entries: Sequence[TaskEntry], target: Path, repo_id: str) -> None:
    """Puts some tasks of a run, and its ledger, into a folder that is missing, empty, or holds another state of it.

    Args:
        ledger ([`ForgettingLedger`]):
            The published run; its files were checked.
        entries (`Sequence[TaskEntry]`):
            The tasks.
        target (`Path`):
            The folder. A run in it that is ahead stays as it is, and files that it lacks are added.
        repo_id (`str`):
            The repository, for messages.

    Raises:
        DivergedRunError: `target` holds a run that went another way.
        WithheldClassesError: The published run withholds classes that the one in `target` names.
        ValueError: If it holds something else.
        OSError: A file cannot be written.
    """
    if not Path(target, LEDGER_NAME).exists():
        if target.is_dir() and any(target.iterdir()):
            expected = "an empty folder, a new one, or a run"
            raise InvalidInputError("folder", str(target), expected, "It holds files, but no ledger: choose another.")
        _check_elsewhere(target)
        with staged_folder(target) as staged:
            for entry in entries:
                _copy_task(ledger, entry, task_folder(staged, entry.name))
            write_bytes_atomic(staged / LEDGER_NAME, ledger.path.read_bytes(), private=ledger.names_classes)
        return
    own = ForgettingLedger.load(target)
    with own.lock():
        own.check_unchanged()
        is_ahead = continuation_error(ledger, own) is None
        problem = continuation_error(own, ledger)
        if problem and not is_ahead:
            raise DivergedRunError(
                f"the run in '{target}' and the one published in {repo_id!r} went separate ways: of the published "
                f"one, {problem}. Fetch it to another folder, and carry out there what is missing.",
                folder=target,
            )
        knows_more = is_withheld(ledger) and not is_withheld(own)
        if knows_more and not is_ahead:
            raise WithheldClassesError(
                f"the ledger of {repo_id!r} withholds its classes and goes beyond the one in '{target}', which names "
                "them. Fetch it to another folder.",
                tasks=withheld_tasks(ledger),
            )
        for entry in entries:
            _add_task(ledger, entry, target)
        if problem is None and not knows_more:
            if ledger.names_classes and not own.names_classes:
                own.path.chmod(0o600)  # a file that is replaced keeps its permissions
            write_bytes_atomic(own.path, ledger.path.read_bytes())


def _add_task(ledger: ForgettingLedger, entry: TaskEntry, target: Path) -> None:
    folder = safe_join(target, f"{TASKS_FOLDER}/{entry.name}")
    if any(file_mismatch(target / name, digest) for name, digest in entry.files.items()):
        with staged_folder(folder) as staged:
            _copy_task(ledger, entry, staged)


def _copy_task(ledger: ForgettingLedger, entry: TaskEntry, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in entry.files:
        shutil.copyfile(ledger.folder / name, folder / Path(name).name)
