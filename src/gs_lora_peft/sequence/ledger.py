"""The file of record: which requests to forget were carried out, on which base model, with what result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .request import LedgerError, TaskEntry, is_names, parse_utc, plain_json, short, utc_now
from .storage import (
    StrPath,
    content_problem,
    exclusive_lock,
    json_bytes,
    parse_json,
    read_limited,
    safe_join,
    sha256_of,
    write_bytes_atomic,
)

LEDGER_NAME = "forgetting.json"
LOCK_NAME = "forgetting.lock"
SCHEMA_VERSION = 1
MAX_LEDGER_BYTES = 64 * 2**20

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


class ForgettingLedger:
    """What a model was asked to forget, request after request, in `forgetting.json` of a folder.

    The file says on which base weights the tasks rest and vouches for every file by its SHA-256. It carries a digest
    of itself, so that an edited ledger is noticed. The digest guards against accidents and careless edits, not against
    somebody who computes a new one.

    Changes are made in memory ([`~ForgettingLedger.append`], [`~ForgettingLedger.revoke`]) and reach the disk
    with [`~ForgettingLedger.save`], whole or not at all. Make one with [`~ForgettingLedger.create`] or
    [`~ForgettingLedger.load`].

    Attributes:
        folder (`Path`): Where the ledger is.
        base_model (`dict`): See [`model_identity`].
        label_names (`list[str]` or `None`): Names of all classes, by id.
        tasks (`tuple[TaskEntry, ...]`): All tasks in order, the revoked ones too.

    Example:

    ```python
    >>> ledger = ForgettingLedger.create("runs/clinic", base_model=model_identity(model), label_names=names)
    >>> with ledger.lock():
    ...     ledger.append(TaskEntry(name=ledger.next_task_name(), ...))
    ...     ledger.save()
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
    ) -> None:
        self.folder = Path(folder)
        self.base_model: dict[str, Any] = _checked_base(base_model)
        self.label_names: list[str] | None = plain_json(label_names, "label_names")
        self.tasks: tuple[TaskEntry, ...] = ()
        self._extra: dict[str, Any] = plain_json(extra or {}, "extra")
        self._seen: str | None = None  # hash of the file as last read or written
        self._locked = False
        count = self.base_model.get("num_labels")
        if self.label_names is not None:
            if not is_names(self.label_names):
                raise LedgerError(f"label_names is {short(label_names)}; expected a list of names. Correct it.")
            if count is not None and count != len(self.label_names):
                raise LedgerError(
                    f"label_names has {len(self.label_names)} names; expected {count}, one for each label of the base "
                    "model's head. Pass all names in the order of their ids."
                )
        for entry in tasks:
            self._add(entry)

    @classmethod
    def create(
        cls, folder: StrPath, *, base_model: Mapping[str, Any], label_names: Sequence[str] | None = None
    ) -> ForgettingLedger:
        """An empty ledger for `folder`. Nothing is written before [`~ForgettingLedger.save`].

        Raises:
            LedgerError: There is a ledger in `folder` already.
        """
        ledger = cls(folder, base_model, label_names)
        if ledger.path.exists():
            raise LedgerError(
                f"'{ledger.path}' exists already. Load it to continue with it, or choose another folder."
            )
        return ledger

    @classmethod
    def load(cls, folder: StrPath) -> ForgettingLedger:
        """Reads and checks the ledger of `folder`. The files it lists are checked by `check_files`, not here.

        Raises:
            LedgerError: There is none, it is damaged, was edited, is of a newer schema, or lists a file outside.
        """
        path = Path(folder) / LEDGER_NAME
        mend = "Fetch or restore a clean copy of the folder (the ledger is not meant to be edited)."
        try:
            raw = read_limited(path, MAX_LEDGER_BYTES)
            data = parse_json(raw)
        except FileNotFoundError:
            raise LedgerError(f"'{path}' does not exist; expected a folder with a ledger. Check the path.") from None
        except OSError as error:
            raise LedgerError(f"'{path}' cannot be read ({error.strerror or error}). Mend that first.") from error
        except ValueError as error:
            raise LedgerError(f"'{path}' is not a ledger: {error}. {mend}") from None
        if not isinstance(data, dict):
            raise LedgerError(f"'{path}' holds {short(data)}; expected a JSON object. {mend}")
        version = data.pop("schema_version", None)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise LedgerError(f"schema_version in '{path}' is {short(version)}; expected {SCHEMA_VERSION}. {mend}")
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"schema_version in '{path}' is {version}; this package reads up to {SCHEMA_VERSION}. Upgrade the "
                "package: pip install --upgrade gs-lora-peft"
            )
        written = data.pop("digest", None)
        try:
            actual = _digest({"schema_version": version, **data})
            if written != actual:
                raise LedgerError(f"the content does not match its digest {short(written)}: it was edited or damaged")
            tasks = data.pop("tasks", None)
            if not isinstance(tasks, list):
                raise LedgerError(f"tasks is {short(tasks)}; expected a list")
            entries = [TaskEntry.from_dict(task) for task in tasks]
            ledger = cls(folder, data.pop("base_model", None), data.pop("label_names", None), entries, data)
            for entry in entries:
                for name in entry.files:
                    safe_join(folder, name)
        except RecursionError:
            raise LedgerError(f"'{path}' is not accepted: it is nested too deeply. {mend}") from None
        except ValueError as error:
            raise LedgerError(f"'{path}' is not accepted: {str(error).rstrip('.')}. {mend}") from None
        ledger._seen = hashlib.sha256(raw).hexdigest()
        return ledger

    @property
    def path(self) -> Path:
        """Where the ledger's file is, or will be."""
        return self.folder / LEDGER_NAME

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, its digest included."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "base_model": self.base_model,
            "label_names": self.label_names,
            "tasks": [entry.to_dict() for entry in self.tasks],
        }
        data = plain_json({**data, **{key: value for key, value in self._extra.items() if key not in data}}, "ledger")
        return {**data, "digest": _digest(data)}

    def save(self) -> None:
        """Writes the ledger: afterwards the file is the new one, or on any failure still the old one.

        Raises:
            LedgerError: Another process holds the lock or has changed the file since it was read; a value cannot be
                written as JSON (NaN, infinities).
            OSError: The write failed (disk full, no permission, ...).
        """
        raw = json_bytes(self.to_dict())
        if len(raw) > MAX_LEDGER_BYTES:
            raise LedgerError(
                f"the ledger would have {len(raw)} bytes; at most {MAX_LEDGER_BYTES} are read back. Record less."
            )
        new = hashlib.sha256(raw).hexdigest()
        with self.lock():
            found = sha256_of(self.path) if self.path.exists() else None
            if found not in (None, self._seen, new):
                raise LedgerError(f"'{self.path}' was changed since it was read. Load it again and repeat the change.")
            write_bytes_atomic(self.path, raw)
        self._seen = new

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from changing the ledger; may be nested. `save` takes it where it is not held.

        The file `forgetting.lock` stays behind and means nothing by itself: the lock ends with the process.

        Raises:
            LedgerError: Another process holds it.
        """
        if self._locked:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(exclusive_lock(self.folder / LOCK_NAME))
            except BlockingIOError:
                raise LedgerError(
                    f"another process is working in '{self.folder}'. Wait for its end, or choose another folder."
                ) from None
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def append(self, entry: TaskEntry) -> None:
        """Adds the next task, in memory.

        Raises:
            LedgerError: It is not named [`~ForgettingLedger.next_task_name`], or one of its classes is beyond the head
                or forgotten already.
        """
        if entry.name != self.next_task_name():
            raise LedgerError(f"the task is named {entry.name!r}; expected {self.next_task_name()!r}. Rename it.")
        self._add(entry)

    def revoke(
        self,
        name: str,
        *,
        reason: str | None = None,
        scores_before: Mapping[str, Any] | None = None,
        scores_after: Mapping[str, Any] | None = None,
        revoked_at: str | None = None,
        **more: Any,
    ) -> TaskEntry:
        """Marks a task as taken back, in memory; its files are left alone.

        Args:
            name (`str`): The task.
            reason (`str`, *optional*): Why.
            scores_before (`Mapping`, *optional*): Scores with the task still in effect.
            scores_after (`Mapping`, *optional*): Scores without it.
            revoked_at (`str`, *optional*, defaults to the present moment): ISO 8601 with an offset from UTC.
            more: Anything else to record.

        Returns:
            [`TaskEntry`]: The entry as it is now.
        """
        (old,) = self.select([name])
        when = utc_now() if revoked_at is None else parse_utc(revoked_at, "revoked_at")
        record = {"revoked_at": when, "reason": reason, "scores_before": scores_before, "scores_after": scores_after}
        new = dataclasses.replace(old, status="revoked", revocation={**record, **more})
        self.tasks = tuple(new if entry is old else entry for entry in self.tasks)
        return new

    @property
    def active_tasks(self) -> list[TaskEntry]:
        """The tasks in effect (not revoked), in order."""
        return [entry for entry in self.tasks if entry.status != "revoked"]

    @property
    def forgotten_classes(self) -> list[int]:
        """Ids of the classes forgotten by the tasks in effect, in the order of forgetting."""
        return [class_id for entry in self.active_tasks for class_id in entry.classes or ()]

    def task_of_class(self, class_id: int) -> TaskEntry | None:
        """The task in effect that forgot a class, or `None`."""
        return next((entry for entry in self.active_tasks if class_id in (entry.classes or ())), None)

    def next_task_name(self) -> str:
        """The name of the task to come: one more than the last, revoked or not."""
        return f"task_{(self.tasks[-1].number if self.tasks else 0) + 1:03d}"

    def select(self, tasks: int | Sequence[str] | None = None) -> list[TaskEntry]:
        """Picks tasks in effect, always in the order in which they were carried out.

        Args:
            tasks (`int` or `Sequence[str]`, *optional*): The first so many of the tasks in effect, or their names;
                `None` for all.

        Raises:
            LedgerError: Fewer tasks, an unknown name, a revoked task, or something else altogether.
        """
        active = self.active_tasks
        there = f"The tasks in effect are: {', '.join(entry.name for entry in active) or 'none'}."
        if tasks is None:
            return active
        if isinstance(tasks, int) and not isinstance(tasks, bool):
            if not 0 <= tasks <= len(active):
                raise LedgerError(f"tasks is {tasks}; expected a number from 0 to {len(active)}. {there}")
            return active[:tasks]
        if isinstance(tasks, (str, bytes)) or not isinstance(tasks, Sequence):
            raise LedgerError(f"tasks is {tasks!r}; expected None, a number or a list of names. {there}")
        status = {entry.name: entry.status for entry in self.tasks}
        for name in tasks:
            if not isinstance(name, str) or name not in status:
                raise LedgerError(f"there is no task {name!r}. {there}")
            if status[name] == "revoked":
                raise LedgerError(f"the task {name!r} was revoked and is no longer in effect. {there}")
        if len(set(tasks)) < len(tasks):
            raise LedgerError(f"tasks is {list(tasks)!r}; expected each name once. {there}")
        return [entry for entry in active if entry.name in tasks]

    def check_files(self, tasks: int | Sequence[str] | None = None) -> None:
        """Checks the files of some tasks (see [`~ForgettingLedger.select`]) against their recorded SHA-256.

        Raises:
            LedgerError: Files are missing or differ; the message lists each with what is wrong with it.
        """
        owners = {digest: path for entry in self.tasks for path, digest in entry.files.items()}
        problems = []
        for entry in self.select(tasks):
            for name, expected in entry.files.items():
                try:
                    problem = content_problem(safe_join(self.folder, name), expected, owners)
                except ValueError as error:
                    problem = str(error)
                if problem:
                    problems.append(f"{name}: {problem}")
        if problems:
            raise LedgerError(
                f"{len(problems)} file(s) in '{self.folder}' are not what the ledger vouches for:\n  "
                + "\n  ".join(problems)
                + "\nFetch or restore clean copies of them; do not use them as they are."
            )

    def check_base(self, identity: Mapping[str, Any] | str) -> None:
        """Checks that a model is the one on which the tasks rest.

        Args:
            identity (`Mapping` or `str`): What [`model_identity`] says of the model, or just its fingerprint.

        Raises:
            LedgerError: It is another model, or the same with other weights.
        """
        given = {"fingerprint": identity} if isinstance(identity, str) else dict(identity)
        mine, other = self.base_model, given.get("fingerprint")
        if other == mine["fingerprint"]:
            return
        revision = f" at revision {mine['revision']}" if mine.get("revision") else ""
        differences = [
            f"{key} {given[key]!r} instead of {mine[key]!r}"
            for key in ("name_or_path", "revision", "model_class", "num_labels")
            if given.get(key) is not None and mine.get(key) is not None and given[key] != mine[key]
        ]
        raise LedgerError(
            f"the ledger in '{self.folder}' belongs to another base model: the weights given have the fingerprint "
            f"{_first_digits(other)}, the ledger's have {_first_digits(mine['fingerprint'])}"
            + (f" ({'; '.join(differences)})" if differences else "")
            + f". Load {mine.get('name_or_path') or 'the original model'!r}{revision} in the dtype it had then and "
            "without merged adapters, or choose another folder."
        )

    def _add(self, entry: TaskEntry) -> None:
        if self.tasks and entry.number <= self.tasks[-1].number:
            raise LedgerError(f"{entry.name} comes after {self.tasks[-1].name}; expected tasks in rising order")
        count = self.base_model.get("num_labels")
        for class_id in (entry.classes or ()) if entry.status != "revoked" else ():
            if count is not None and class_id >= count:
                raise LedgerError(
                    f"{entry.name}.classes holds {class_id}; the base model's head has the classes 0 to {count - 1}. "
                    "Correct it."
                )
            earlier = self.task_of_class(class_id)
            if earlier is not None:
                raise LedgerError(
                    f"{entry.name}.classes holds {class_id}, which {earlier.name} has forgotten already. Leave it "
                    f"out, or revoke {earlier.name} first."
                )
        self.tasks = (*self.tasks, entry)


def library_versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in ("gs-lora-peft", "peft", "transformers", "torch", "accelerate", "datasets", "safetensors", "numpy"):
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _digest(data: Mapping[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _first_digits(fingerprint: Any) -> str:
    return f"{fingerprint.removeprefix('sha256:')[:12]}..." if isinstance(fingerprint, str) else repr(fingerprint)


def _checked_base(base_model: Any) -> dict[str, Any]:
    if not isinstance(base_model, Mapping):
        raise LedgerError(
            f"base_model is {short(base_model)}; expected what model_identity(model) returns. Pass that."
        )
    base: dict[str, Any] = plain_json(base_model, "base_model")
    fingerprint = base.get("fingerprint")
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise LedgerError(
            f"base_model.fingerprint is {short(fingerprint)}; expected 'sha256:' and 64 hexadecimal digits. Take it "
            "from model_identity(model)."
        )
    for key in ("name_or_path", "revision", "model_class"):
        if not isinstance(base.get(key), (str, type(None))):
            raise LedgerError(f"base_model.{key} is {short(base[key])}; expected text or None. Correct it.")
    count = base.get("num_labels")
    if count is not None and (type(count) is not int or count < 0):
        raise LedgerError(
            f"base_model.num_labels is {short(count)}; expected a number of classes or None. Correct it."
        )
    return base
