"""The format of a ledger: the values it holds, its digest, its files, and their limits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from ..checking import NotNegativeWhole, OptionalText, checked
from ..errors import short
from ..io import StrPath, as_path, exclusive_lock, json_bytes, parse_json, read_limited, refuse_links, sha256_of
from .errors import InvalidLedgerError, LedgerFileError, LinkedRunError, RunLockedError

Names = Annotated[list[Annotated[str, Strict()]], Field(description="a list of names")]

_BASE_MODEL_KINDS: dict[str, Any] = {
    "fingerprint": Annotated[
        str,
        Strict(),
        Field(pattern="^sha256:[0-9a-f]{64}$", description="'sha256:' and 64 hexadecimal digits"),
    ],
    **dict.fromkeys(("name_or_path", "revision", "model_class"), OptionalText),
    "num_labels": Annotated[NotNegativeWhole | None, Field(description="a number of classes or None")],
}


def plain_json(value: Any, where: str) -> Any:
    """Returns a copy of a value in plain JSON types.

    Args:
        value (`Any`):
            Numbers, text, `None`, and lists and dicts of them. NumPy numbers and enum members are converted.
        where (`str`):
            Name of the value, for the error.

    Raises:
        InvalidLedgerError: If JSON cannot hold the value. The error names the place.
    """
    try:
        return _plain_json(value, where)
    except RecursionError:
        raise InvalidLedgerError(where, value, "a value that is not nested endlessly", "Leave it out.") from None


def _plain_json(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int):  # the exact types first: most of a long ledger is numbers
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise InvalidLedgerError(where, value, "text that UTF-8 can encode", "Correct it.")
        return str.__str__(value)  # the bare text of an enum member
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise InvalidLedgerError(where, float(value), "a finite number", "Leave it out or find its cause.")
        return float(value)
    if isinstance(value, Mapping):
        bad_keys = [key for key in value if not isinstance(key, str)]
        if bad_keys:
            raise InvalidLedgerError(f"a key of {where}", bad_keys[0], "text", "Convert it.")
        return {_plain_json(key, where): _plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidLedgerError(
        where, value, "text, numbers, True, False, None, or lists and dicts of them", "Convert it first."
    )


def checked_base_model(base_model: Any) -> dict[str, Any]:
    """Checks the record of a base model and returns it in plain JSON types.

    Args:
        base_model (`Mapping[str, Any]`):
            What [`model_identity`] returns.

    Raises:
        InvalidLedgerError: If a field is missing or invalid. The error names it.
    """
    if not isinstance(base_model, Mapping):
        raise InvalidLedgerError("base_model", base_model, "what model_identity(model) returns", "Pass that.")
    base: dict[str, Any] = plain_json(base_model, "base_model")
    for key, kind in _BASE_MODEL_KINDS.items():
        checked(
            f"base_model.{key}",
            base.get(key),
            kind,
            fix="Take it from model_identity(model).",
            error=InvalidLedgerError,
        )
    return base


def base_model_mismatch(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Describes how a model differs from the expected one. Only the weights count, not the name.

    Args:
        expected (`Mapping[str, Any]`):
            [`model_identity`] of the expected model.
        given (`Mapping[str, Any]`):
            [`model_identity`] of the given model, or its fingerprint alone.

    Returns:
        `str` or `None`: The difference; `None` if the weights are the same.
    """
    mine, other = expected["fingerprint"], given.get("fingerprint")
    if other == mine:
        return None
    differences = [
        f"{key} {given[key]!r} instead of {expected[key]!r}"
        for key in ("name_or_path", "revision", "model_class", "num_labels")
        if given.get(key) is not None and expected.get(key) is not None and given[key] != expected[key]
    ]
    revision = f" at revision {expected['revision']}" if expected.get("revision") else ""
    return (
        f"the weights given have the fingerprint {first_digits(other)}, the ledger's have {first_digits(mine)}"
        + (f" ({'; '.join(differences)})" if differences else "")
        + f". Load {expected.get('name_or_path') or 'the original model'!r}{revision} in the dtype it had then and "
        "without merged adapters"
    )


def first_digits(fingerprint: Any) -> str:
    """Shortens a fingerprint for messages."""
    return f"{fingerprint.removeprefix('sha256:')[:12]}..." if isinstance(fingerprint, str) else repr(fingerprint)


LEDGER_NAME = "forgetting.json"
LOCK_NAME = "forgetting.lock"
TASKS_FOLDER = "tasks"
WORK_FOLDER = "work"
LOGS_FOLDER = "logs"
AUDIT_FOLDER = "audit"
KEY_NAME = "withheld.key"  # proves what the digests of a published ledger withhold
TRAINING_CONFIG = "gs_lora_config.json"  # beside the plain adapter: the settings needed to train it further
WEIGHT_DIFFERENCE = "weight_difference.safetensors"  # in place of an adapter: new values of weights
METHOD_FOLDER = "method"  # beside the tasks, and never published: what a method keeps for its later tasks
METHOD_FILE = "method.safetensors"

MAX_CONFIG_BYTES = 2**24
MAX_LEDGER_BYTES = 64 * 2**20

SCHEMA_VERSION = 1
_Version = Annotated[int, Strict(), Field(ge=1, description=str(SCHEMA_VERSION))]

FIX = "Fetch or restore a clean copy of the folder (the ledger is not meant to be edited)."


def task_folder(folder: StrPath, name: str) -> Path:
    """Returns the path of one task's folder."""
    return Path(folder) / TASKS_FOLDER / name


def method_folder(folder: StrPath, name: str) -> Path:
    """Returns the path of the folder with what the method of one task keeps for later ones."""
    return Path(folder) / METHOD_FOLDER / name


_PARTS = (
    LEDGER_NAME, LOCK_NAME, KEY_NAME, TASKS_FOLDER, METHOD_FOLDER, WORK_FOLDER, LOGS_FOLDER, AUDIT_FOLDER
)  # fmt: skip


def refuse_linked_parts(folder: StrPath) -> None:
    """Checks that no file or folder of a run is a symbolic link, see [`refuse_links`].

    Raises:
        LinkedRunError: If one is.
    """
    try:
        refuse_links(folder, _PARTS)
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
