"""Installing a fetched run in a folder, which may hold another state of the run."""

from __future__ import annotations

import copy
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
    FilesDifferError,
    ForgettingLedger,
    TaskEntry,
    WithheldClassesError,
    first_digits,
    ledger_bytes,
    task_folder,
)


def continuation_error(older: ForgettingLedger, newer: ForgettingLedger) -> str | None:
    """Returns why `newer` does not continue `older`, or `None` if it does: the same base and tasks, and perhaps more.

    Tasks are the same if their files are, even if one of the ledgers withholds the classes. A task may be revoked in
    `newer` alone.
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
    """Returns whether a ledger withholds the classes of a task."""
    return bool(withheld_tasks(ledger))


def withheld_tasks(ledger: ForgettingLedger) -> list[str]:
    """Returns the tasks whose classes a ledger withholds."""
    return [entry.name for entry in ledger.tasks if entry.classes is None]


def check_free(folder: StrPath) -> None:
    """Checks that a folder is missing or empty, before its content is made.

    Raises:
        InvalidInputError: If it holds files, is not a folder, or is the working directory, which cannot be replaced
            under the running process.
    """
    target = Path(folder)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        fix = f"'{target}' exists already: choose another."
        raise InvalidInputError("folder", str(target), "a free path or an empty folder", fix)
    _check_elsewhere(target)


def _check_elsewhere(target: Path) -> None:
    if os.path.realpath(target) == os.path.realpath("."):
        fix = "It is the working directory: name a new folder in it."
        raise InvalidInputError("folder", str(target), "a folder that can be replaced", fix)


def audit_files(ledger: ForgettingLedger) -> dict[str, str]:
    """Returns the files of the recorded audit that may be published: path in the run → SHA-256."""
    return dict((ledger.audit or {}).get("files", {}))


def copy_audit(ledger: ForgettingLedger, target: Path) -> bool:
    """Copies the files of the recorded audit to another folder, all or none; returns whether it did.

    Args:
        ledger ([`ForgettingLedger`]):
            The run. A user may have removed the report from its folder, so that it is not published.
        target (`Path`):
            The folder.

    Raises:
        FilesDifferError: If one of the files differs from its hash. Nothing is copied then.
    """
    files = audit_files(ledger)
    if not all((ledger.folder / name).is_file() for name in files):
        return False
    if problems := {name: found for name, sha in files.items() if (found := file_mismatch(ledger.folder / name, sha))}:
        raise FilesDifferError.of(ledger.folder, problems)
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ledger.folder / name, target / name)
    return bool(files)


def install_run(ledger: ForgettingLedger, entries: Sequence[TaskEntry], target: Path, repo_id: str) -> None:
    """Copies some tasks of a run, and its ledger, to a folder that is missing, empty, or has another state of the run.

    Args:
        ledger ([`ForgettingLedger`]):
            The published run, with checked files.
        entries (`Sequence[TaskEntry]`):
            The tasks.
        target (`Path`):
            The folder. If the run in it is ahead, its ledger stays, and only missing files are added.
        repo_id (`str`):
            The repository, for messages.

    Raises:
        DivergedRunError: If the run in `target` and the published one went separate ways.
        WithheldClassesError: If the published run is ahead, and withholds classes that the one in `target` names.
        InvalidInputError: If `target` holds something else.
        OSError: If a file cannot be written.
    """
    if not Path(target, LEDGER_NAME).exists():
        if target.is_dir() and any(target.iterdir()):
            expected = "an empty folder, a new one, or a run"
            raise InvalidInputError("folder", str(target), expected, "It holds files, but no ledger: choose another.")
        _check_elsewhere(target)
        with staged_folder(target) as staged:
            for entry in entries:
                _copy_task(ledger, entry, task_folder(staged, entry.name))
            copy_audit(ledger, staged)
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
                own.path.chmod(0o600)  # a replaced file keeps its permissions
            _replace_ledger(own, ledger)


def _replace_ledger(own: ForgettingLedger, published: ForgettingLedger) -> None:
    """Writes the published ledger in place of `own`. A newer audit of `own` stays."""
    moments = [(ledger.audit or {}).get("recorded_at", "") for ledger in (own, published)]
    if moments[0] > moments[1]:
        published = copy.copy(published)
        published.audit = own.audit
        write_bytes_atomic(own.path, ledger_bytes(published.to_dict()))
    else:
        copy_audit(published, own.folder)
        write_bytes_atomic(own.path, published.path.read_bytes())


def _add_task(ledger: ForgettingLedger, entry: TaskEntry, target: Path) -> None:
    folder = safe_join(target, f"{TASKS_FOLDER}/{entry.name}")
    if any(file_mismatch(target / name, digest) for name, digest in entry.files.items()):
        with staged_folder(folder) as staged:
            _copy_task(ledger, entry, staged)


def _copy_task(ledger: ForgettingLedger, entry: TaskEntry, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in entry.files:
        shutil.copyfile(ledger.folder / name, folder / Path(name).name)
