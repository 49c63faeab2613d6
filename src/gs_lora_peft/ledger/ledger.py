"""The ledger: which requests were carried out, on which base model, with which result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..checking import checked
from ..errors import InvalidInputError
from ..io import StrPath, as_path, file_mismatch, safe_join, write_bytes_atomic
from .audits import check_replaces, checked_audit
from .entry import TaskEntry, select_tasks
from .errors import FilesDifferError, InvalidLedgerError, LedgerFileError, OtherBaseModelError, PrivateLedgerError
from .request import utc_now
from .schema import (
    FIX,
    LEDGER_NAME,
    LedgerFolder,
    Names,
    base_model_mismatch,
    checked_base_model,
    ledger_bytes,
    plain_json,
    read_ledger_file,
    refuse_linked_parts,
    with_digest,
)
from .separable import check_separable


class ForgettingLedger(LedgerFolder):
    """The record of all requests of a run, in `forgetting.json` of the run folder.

    The ledger records the base weights of the run and the SHA-256 of every file. It contains a digest of itself, which
    reveals accidental and careless edits. It does not protect against an attacker who computes a new digest.

    Make a ledger with [`~ForgettingLedger.create`] or [`~ForgettingLedger.load`]. Change it with
    [`~ForgettingLedger.append`], [`~ForgettingLedger.revoke`] or [`~ForgettingLedger.record_audit`] inside a
    [`~ForgettingLedger.changes`] block, which
    writes all changes at its end, or none.

    Args:
        folder (`str` or `os.PathLike`):
            The run folder.
        base_model (`Mapping[str, Any]`):
            See [`model_identity`].
        label_names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.
        tasks (`Sequence[TaskEntry]`, *optional*, defaults to none):
            All tasks in order, including the revoked ones.
        extra (`Mapping[str, Any]`, *optional*):
            Keys of the file that this version does not know. They are kept unchanged.
        audit (`Mapping[str, Any]`, *optional*):
            The last audit, see [`~ForgettingLedger.record_audit`].

    Attributes:
        folder (`Path`):
            The run folder.
        base_model (`dict[str, Any]`):
            See [`model_identity`].
        label_names (`list[str]` or `None`):
            Names of all classes, in the order of their ids.
        tasks (`tuple[TaskEntry, ...]`):
            All tasks in order, including the revoked ones.
        audit (`dict[str, Any]` or `None`):
            The last audit. It covers the tasks that it names: [`outdated_audit`] says what changed since.

    Example:
        ```py
        >>> ledger = ForgettingLedger.create("runs/clinic", base_model=model_identity(model), label_names=names)
        >>> with ledger.changes():
        ...     ledger.append(TaskEntry(name=ledger.next_task_name(), ...))
        >>> ForgettingLedger.load("runs/clinic").forgotten_classes
        [7]
        ```
    """

    def __init__(
        self,
        folder: StrPath,
        base_model: Mapping[str, Any],
        label_names: Sequence[str] | None = None,
        tasks: Sequence[TaskEntry] = (),
        extra: Mapping[str, Any] | None = None,
        audit: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder)
        self.base_model: dict[str, Any] = checked_base_model(base_model)
        self.label_names: list[str] | None = checked(
            "label_names",
            plain_json(label_names, "label_names"),
            Names | None,
            fix="Correct it.",
            error=PrivateLedgerError,
        )
        self.tasks: tuple[TaskEntry, ...] = ()
        self._extra: dict[str, Any] = plain_json(extra or {}, "extra")
        count = self.base_model.get("num_labels")
        if self.label_names is not None and count not in (None, len(self.label_names)):
            expected = f"{count} names, one for each label of the base model's head"
            fix = f"These are {len(self.label_names)}: pass all names in the order of their ids."
            raise PrivateLedgerError("label_names", self.label_names, expected, fix)
        forgotten: dict[int, TaskEntry] = {}
        for entry in tasks:
            self._add(entry, forgotten)
        self.audit: dict[str, Any] | None = None if audit is None else checked_audit(audit, self.tasks)

    @classmethod
    def create(
        cls, folder: StrPath, *, base_model: Mapping[str, Any], label_names: Sequence[str] | None = None
    ) -> ForgettingLedger:
        """Makes an empty ledger. [`~ForgettingLedger.save`] writes it.

        Args:
            folder (`str` or `os.PathLike`):
                The run folder.
            base_model (`Mapping[str, Any]`):
                See [`model_identity`].
            label_names (`Sequence[str]`, *optional*):
                Names of all classes, in the order of their ids.

        Raises:
            LedgerError: If `folder` contains a ledger already, or a part of it is a symbolic link.
        """
        refuse_linked_parts(folder)
        ledger = cls(folder, base_model, label_names)
        if ledger.path.exists():
            message = f"'{ledger.path}' exists already. Load it to continue with it, or choose another folder."
            raise LedgerFileError(message, path=ledger.path, reason="exists")
        return ledger

    @classmethod
    def load(cls, folder: StrPath) -> ForgettingLedger:
        """Reads and checks the ledger of a folder. [`~ForgettingLedger.check_files`] checks the files it lists.

        Args:
            folder (`str` or `os.PathLike`):
                The run folder. It may be a symbolic link, but its parts must not.

        Raises:
            LedgerError: If the folder has none; if damaged, edited, of a newer schema or lists a file outside the
                folder; or if a part of the folder is a symbolic link.
        """
        folder = as_path(folder, "folder")
        refuse_linked_parts(folder)
        path = folder / LEDGER_NAME
        data, seen = read_ledger_file(path)
        try:
            tasks = data.pop("tasks", None)
            if not isinstance(tasks, list):
                raise InvalidLedgerError("tasks", tasks, "a list")
            entries = [TaskEntry.from_dict(task) for task in tasks]
            base, names, audit = (data.pop(key, None) for key in ("base_model", "label_names", "audit"))
            ledger = cls(folder, base, names, entries, data, audit)
            listed = [found for entry in entries for found in (entry.files, entry.method_files or {})]
            listed.append((ledger.audit or {}).get("files", {}))
            for name in (name for files in listed for name in files):
                if problem := ledger._path_problem(name):
                    raise InvalidLedgerError("files", name, "paths inside the folder", problem)
        except InvalidInputError as error:
            fix = f"'{path}' is not accepted. {FIX}"
            raise InvalidLedgerError(error.name, error.value, error.expected, fix) from None
        ledger._seen = seen
        return ledger

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the file, including its digest."""
        data = {
            "base_model": self.base_model,
            "label_names": self.label_names,
            "tasks": [entry.to_dict() for entry in self.tasks],
            **({} if self.audit is None else {"audit": self.audit}),
        }
        extra = {key: value for key, value in self._extra.items() if key not in data}
        return with_digest(plain_json({**data, **extra}, "ledger"))

    def save(self) -> None:
        """Writes the ledger atomically: after a failure the old file is still there.

        Raises:
            LedgerError: If another process holds the lock or has changed the file since it was read, or if JSON cannot
                hold a value (NaN, infinities).
            OSError: If the file cannot be written (disk full, no permission, ...).
        """
        raw = ledger_bytes(self.to_dict())
        new = hashlib.sha256(raw).hexdigest()
        with self.lock():
            self.check_unchanged(new)
            write_bytes_atomic(self.path, raw, private=self.names_classes)
        self._seen = new

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Saves the changes of a `with` block. After an error, the file and the ledger in memory are unchanged.

        Raises:
            LedgerError: As in [`~ForgettingLedger.save`].
            OSError: As in [`~ForgettingLedger.save`].
        """
        with self.lock():
            before = self.tasks, self.audit
            try:
                self.check_unchanged()
                yield
                self.save()
            except BaseException:
                self.tasks, self.audit = before
                raise

    def append(self, entry: TaskEntry) -> None:
        """Adds the next task, in memory.

        Args:
            entry ([`TaskEntry`]):
                The task. Its name must be [`~ForgettingLedger.next_task_name`].

        Raises:
            LedgerError: If it has another name, or one of its classes is outside the head or already forgotten.
        """
        if entry.name != self.next_task_name():
            raise InvalidLedgerError("a task's name", entry.name, repr(self.next_task_name()), "Rename it.")
        self._add(entry, {c: earlier for earlier in self.active_tasks for c in earlier.classes or ()})

    def revoke(
        self,
        name: str,
        *,
        reason: str | None = None,
        scores_before: Mapping[str, Any] | None = None,
        scores_after: Mapping[str, Any] | None = None,
        redone_as: str | None = None,
    ) -> TaskEntry:
        """Marks a task as revoked, in memory. Its files stay.

        Args:
            name (`str`):
                Name of the task.
            reason (`str`, *optional*):
                Why it is revoked.
            scores_before (`Mapping[str, Any]`, *optional*):
                Scores with the task in effect.
            scores_after (`Mapping[str, Any]`, *optional*):
                Scores without it.
            redone_as (`str`, *optional*):
                Name of the task that carries out the same request again.

        Returns:
            [`TaskEntry`]: The revoked entry.

        Raises:
            LedgerError: If there is no such task in effect, or it cannot be left out, see [`check_separable`].
        """
        (old,) = self.select([name])
        check_separable(self.tasks, [entry.name for entry in self.active_tasks if entry is not old])
        record = {
            "revoked_at": utc_now(),
            "reason": f"carried out again as {redone_as}" if reason is None and redone_as else reason,
            "scores_before": scores_before,
            "scores_after": scores_after,
            **({"redone_as": redone_as} if redone_as else {}),
        }
        new = dataclasses.replace(old, status="revoked", revocation=record)
        self.tasks = tuple(new if entry is old else entry for entry in self.tasks)
        return new

    def record_outcomes(self, outcomes: Mapping[str, dict[str, Any]]) -> None:
        """Replaces the outcomes of tasks, in memory.

        Args:
            outcomes (`Mapping[str, dict[str, Any]]`):
                Name of a task → outcome, see [`outcome_of_task`].
        """
        self.tasks = tuple(
            dataclasses.replace(entry, outcome=outcomes[entry.name]) if entry.name in outcomes else entry
            for entry in self.tasks
        )

    def record_audit(
        self, summary: Mapping[str, Any], files: Mapping[str, str] | None = None, *, replace: bool = False
    ) -> None:
        """Records an audit in place of an earlier one, in memory. Tasks that come later are not covered by it.

        Args:
            summary (`Mapping[str, Any]`):
                [`~AuditReport.summary`] of the audit, which names no class.
            files (`Mapping[str, str]`, *optional*):
                Files of the report that may be published with the run: path in `audit/` → SHA-256.
            replace (`bool`, *optional*, defaults to `False`):
                Whether to record it also in place of an audit that tried more and found worse.

        Raises:
            LedgerError: If a field is missing or invalid, or a task is not in the ledger.
            WorseAuditError: If an audit of the same tasks tried more and found worse, see [`check_replaces`].
        """
        record = checked_audit({**summary, "recorded_at": utc_now(), "files": dict(files or {})}, self.tasks)
        check_replaces(record, None if replace else self.audit)
        self.audit = record

    @property
    def active_tasks(self) -> list[TaskEntry]:
        """The tasks in effect (those that are not revoked), in order."""
        return [entry for entry in self.tasks if entry.status != "revoked"]

    @property
    def forgotten_classes(self) -> list[int]:
        """Ids of the classes forgotten by the tasks in effect, in the order of the tasks."""
        return [class_id for entry in self.active_tasks for class_id in entry.classes or ()]

    @property
    def names_classes(self) -> bool:
        """Whether the ledger names classes. If so, only the owner may read its file."""
        return self.label_names is not None or any(entry.classes is not None for entry in self.tasks)

    def task_of_class(self, class_id: int) -> TaskEntry | None:
        """Returns the task in effect that forgot a class, or `None`."""
        return next((entry for entry in self.active_tasks if class_id in (entry.classes or ())), None)

    def next_task_name(self) -> str:
        """Returns the name of the next task. Revoked tasks keep their numbers."""
        return f"task_{(self.tasks[-1].number if self.tasks else 0) + 1:03d}"

    def select(self, tasks: int | Sequence[str] | None = None) -> list[TaskEntry]:
        """Selects tasks in effect, in the order of the ledger.

        Args:
            tasks (`int` or `Sequence[str]`, *optional*):
                How many tasks in effect, from the first on; or their names; by default all.

        Raises:
            LedgerError: If there are fewer tasks, a name is unknown, or a task is revoked.
        """
        return select_tasks(self.tasks, tasks)

    def check_files(self, tasks: int | Sequence[str] | None = None) -> None:
        """Checks the files of tasks against their recorded SHA-256.

        Args:
            tasks (`int` or `Sequence[str]`, *optional*):
                As in [`~ForgettingLedger.select`].

        Raises:
            FilesDifferError: If files are missing or differ. It lists them all.
        """
        files = {name: digest for entry in self.select(tasks) for name, digest in entry.files.items()}
        found = {
            name: self._path_problem(name) or file_mismatch(self.folder / name, digest)
            for name, digest in files.items()
        }
        if problems := {name: problem for name, problem in found.items() if problem}:
            raise FilesDifferError.of(self.folder, problems)

    def _path_problem(self, name: str) -> str | None:
        """Explains why a path leads outside the folder, perhaps through a link; `None` if it does not."""
        try:
            safe_join(self.folder, name)
        except ValueError as error:
            return str(error)
        return None

    def check_base(self, identity: Mapping[str, Any] | str) -> None:
        """Checks that a model is the base model of the ledger.

        Args:
            identity (`Mapping[str, Any]` or `str`):
                [`model_identity`] of the model, or its fingerprint alone.

        Raises:
            OtherBaseModelError: If the weights differ.
        """
        given = {"fingerprint": identity} if isinstance(identity, str) else identity
        if problem := base_model_mismatch(self.base_model, given):
            message = (
                f"the ledger in '{self.folder}' belongs to another base model: {problem}, or choose another folder."
            )
            raise OtherBaseModelError(message, expected=self.base_model, given=dict(given))

    def _add(self, entry: TaskEntry, forgotten: dict[int, TaskEntry]) -> None:
        """Adds a task; `forgotten` holds the task in effect of each class, and receives its own."""
        if self.tasks and entry.number <= self.tasks[-1].number:
            raise InvalidLedgerError("a task's name", entry.name, f"one that comes after {self.tasks[-1].name}")
        if entry.status != "revoked":
            self._check_classes(entry, forgotten)
            forgotten.update(dict.fromkeys(entry.classes or (), entry))
        self.tasks = (*self.tasks, entry)

    def _check_classes(self, entry: TaskEntry, forgotten: Mapping[int, TaskEntry]) -> None:
        """Checks that the classes of a task are in the head and not forgotten by another task in effect."""
        count = self.base_model.get("num_labels")
        for name in ("classes", "missing_classes"):
            for class_id in getattr(entry, name) or ():
                if count is not None and class_id >= count:
                    expected = f"ids from 0 to {count - 1}, the classes of the base model's head"
                    raise InvalidLedgerError(f"{entry.name}.{name}", class_id, expected, "Correct it.")
        for class_id in entry.classes or ():
            if earlier := forgotten.get(class_id):
                fix = f"{earlier.name} has forgotten it already: leave it out, or revoke {earlier.name} first."
                raise InvalidLedgerError(f"{entry.name}.classes", class_id, "classes that are still known", fix)
