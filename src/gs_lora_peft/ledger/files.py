"""The files of a run folder: their names and size limits, the lock, and reading the ledger file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from ..checking import checked
from ..errors import short
from ..io import StrPath, as_path, exclusive_lock, json_bytes, parse_json, read_limited, refuse_links, sha256_of
from .errors import InvalidLedgerError, LedgerFileError, LinkedRunError, RunLockedError

LEDGER_NAME = "forgetting.json"
LOCK_NAME = "forgetting.lock"
TASKS_FOLDER = "tasks"
WORK_FOLDER = "work"
LOGS_FOLDER = "logs"
KEY_NAME = "withheld.key"  # decrypts what a published ledger withholds
TRAINING_CONFIG = "gs_lora_config.json"  # beside the plain adapter: the settings needed to train it further

MAX_CONFIG_BYTES = 2**24
MAX_LEDGER_BYTES = 64 * 2**20

SCHEMA_VERSION = 1
_Version = Annotated[int, Strict(), Field(ge=1, description=str(SCHEMA_VERSION))]

FIX = "Fetch or restore a clean copy of the folder (the ledger is not meant to be edited)."


def task_folder(folder: StrPath, name: str) -> Path:
    """Returns the path of one task's folder."""
    return Path(folder) / TASKS_FOLDER / name


def refuse_linked_parts(folder: StrPath) -> None:
    """Checks that no file or folder of a run is a symbolic link, see [`refuse_links`].

    Raises:
        LinkedRunError: If one is.
    """
    try:
        refuse_links(folder, (LEDGER_NAME, LOCK_NAME, KEY_NAME, TASKS_FOLDER, WORK_FOLDER, LOGS_FOLDER))
    except ValueError as error:
        raise LinkedRunError(str(error), folder=Path(folder)) from None


class LedgerFolder:
    """The part of [`ForgettingLedger`] that guards its file against other processes.

    Args:
        folder (`str` or `os.PathLike`):
            The run folder.
    """

    def __init__(self, folder: StrPath):
        self.folder = as_path(folder, "folder")
        self._seen: str | None = None  # SHA-256 of the file as last read or written
        self._locked = False

    @property
    def path(self) -> Path:
        """Path of the ledger file."""
        return self.folder / LEDGER_NAME

    def check_unchanged(self, *accepted: str) -> None:
        """Checks that no other process has changed the file since it was read.

        Args:
            accepted (`str`):
                Further SHA-256 values that are accepted.

        Raises:
            LedgerFileError: If the file was changed.
        """
        if self.path.exists() and sha256_of(self.path) not in (self._seen, *accepted):
            message = f"'{self.path}' was changed since it was read. Load it again and repeat the change."
            raise LedgerFileError(message, path=self.path, reason="changed")

    def check_there(self) -> None:
        """Checks that the file was not deleted since it was read or written.

        `save` does not check this: it writes the complete ledger from memory.

        Raises:
            LedgerFileError: If the file was deleted.
        """
        if self._seen is not None and not self.path.exists():
            fix = "Restore it, or start again with a new forgetter and the base model."
            message = f"'{self.path}' was deleted since it was read. {fix}"
            raise LedgerFileError(message, path=self.path, reason="deleted")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from changing the ledger. May be nested; `save` takes the lock if it is not held.

        The file `forgetting.lock` stays behind. It does not block anything: the lock ends with the process.

        Raises:
            RunLockedError: If another process holds the lock.
            LinkedRunError: If a part of the folder is a symbolic link.
        """
        if self._locked:
            yield
            return
        refuse_linked_parts(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(exclusive_lock(self.folder / LOCK_NAME))
            except BlockingIOError:
                message = (
                    f"another process is working in '{self.folder}'. Wait until it ends, or choose another folder."
                )
                raise RunLockedError(message, folder=self.folder) from None
            self._locked = True
            try:
                yield
            finally:
                self._locked = False


def read_ledger_file(path: Path) -> tuple[dict[str, Any], str]:
    """Reads a ledger file and checks its schema version and its digest.

    Args:
        path (`Path`):
            The file.

    Returns:
        `tuple[dict[str, Any], str]`: The content without schema version and digest, and the SHA-256 of the file.

    Raises:
        LedgerError: If the file does not exist, is not a ledger, has a newer schema, or was damaged or edited.
    """
    try:
        raw = read_limited(path, MAX_LEDGER_BYTES)
        data = parse_json(raw)
    except FileNotFoundError:
        fix = "does not exist; expected a folder with a ledger. Check the path"
        raise _refused(path, "missing", fix) from None
    except OSError as error:
        fix = f"cannot be read ({error.strerror or error}). Fix the cause first"
        raise _refused(path, "unreadable", fix) from error
    except ValueError as error:
        raise _refused(path, "damaged", f"is not a ledger: {str(error).rstrip('.')}. {FIX}") from None
    if not isinstance(data, dict):
        raise _refused(path, "damaged", f"holds {short(data)}; expected a JSON object. {FIX}")
    name, version = f"schema_version in '{path}'", data.get("schema_version")
    if checked(name, version, _Version, fix=FIX, error=InvalidLedgerError) > SCHEMA_VERSION:
        fix = "Upgrade the package: pip install --upgrade gs-lora-peft"
        raise InvalidLedgerError(name, version, f"at most {SCHEMA_VERSION}, which this package reads", fix)
    written = data.pop("digest", None)
    try:
        genuine = written == _digest(data)
    except (ValueError, RecursionError):  # numbers too large for a float, nesting too deep
        genuine = False
    if not genuine:
        problem = f"is not accepted: its content does not match its digest {short(written)}: it was edited or damaged"
        raise _refused(path, "edited", f"{problem}. {FIX}")
    del data["schema_version"]
    return data, hashlib.sha256(raw).hexdigest()


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the schema version (first key) and the digest (last key) to the content of a ledger."""
    content = {"schema_version": SCHEMA_VERSION, **data}
    return {**content, "digest": _digest(content)}


def ledger_bytes(content: Mapping[str, Any]) -> bytes:
    """Serializes the content of a ledger.

    Raises:
        InvalidLedgerError: If the file would be too large to be read back.
    """
    raw = json_bytes(content)
    if len(raw) > MAX_LEDGER_BYTES:
        expected = f"at most {MAX_LEDGER_BYTES}, so that it can be read back"
        raise InvalidLedgerError("the number of bytes of the ledger", len(raw), expected, "Record less.")
    return raw


def _refused(path: Path, reason: str, problem: str) -> LedgerFileError:
    return LedgerFileError(f"'{path}' {problem.rstrip('.')}.", path=path, reason=reason)


def _digest(data: Mapping[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
