"""Publishing that something was forgotten without saying what."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

from ..sequence import ForgettingLedger, TaskEntry
from ..sequence.layout import KEY_NAME
from ..sequence.plain import InvalidLedgerError
from ..storage import StrPath, as_path, read_limited
from .coarse import without_counts

_DIGEST = "hmac-sha256:"
_BASE_FIELDS = ("name_or_path", "revision", "model_class", "num_labels", "tied_heads", "fingerprint")


def withheld_ledger(ledger: ForgettingLedger, key: bytes, folder: StrPath) -> ForgettingLedger:
    """The ledger without anything that names a class or reveals one by its size, see [`without_counts`].

    Of a request remain its number, its day and a keyed digest of its classes. Entries that are withheld already keep
    their digests.

    Args:
        ledger ([`ForgettingLedger`]):
            The full ledger; not changed.
        key (`bytes`):
            See [`withholding_key`].
        folder (`str` or `os.PathLike`):
            Where the new ledger is to lie; nothing is written.

    Returns:
        [`ForgettingLedger`]: With the same tasks and files.
    """
    base = {name: ledger.base_model[name] for name in _BASE_FIELDS if name in ledger.base_model}
    coarse = without_counts(ledger.tasks)
    entries = [
        dataclasses.replace(new, request={**new.request, "withheld": True, "digest": _digest_of(old, key)})
        for old, new in zip(ledger.tasks, coarse, strict=True)
    ]
    return ForgettingLedger(folder, base, None, entries)


def withholds_by_default(folder: StrPath) -> bool:
    """Whether a run was withheld before, in any repository: then its folder has a key."""
    return (as_path(folder, "folder") / KEY_NAME).exists()


def withholding_key(folder: StrPath, *, create: bool = False) -> bytes:
    """The secret key of a run's digests, from `withheld.key` in its folder (readable by its owner alone).

    It never leaves the machine: the classes of a model are few, and a reader of the key can try them all.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of the run.
        create (`bool`, *optional*, defaults to `False`):
            Make a key if the folder has none.

    Raises:
        InvalidLedgerError: If the key is missing or damaged.
        OSError: If it cannot be read or written.
    """
    path = as_path(folder, "folder") / KEY_NAME
    if create and not path.exists():
        # Whole or absent, and never readable by others, not even for a moment. No lock is needed, so that a run that
        # goes on in the folder can be published: of two who make a key at the same time, the first one's stays.
        staged = path.with_name(f".staging-{KEY_NAME}-{secrets.token_hex(8)}")
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(fd)
        try:
            os.link(staged, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(staged, path)
        staged.unlink(missing_ok=True)
    try:
        key = bytes.fromhex(read_limited(path, 1000).decode("ascii"))
    except FileNotFoundError:
        expected = "the key that publishing with withheld classes made"
        raise InvalidLedgerError(str(path), "missing", expected, "Restore it.") from None
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidLedgerError(str(path), "damaged", "64 hexadecimal digits", "Restore it from a backup.")
    return key


def request_proof(folder: StrPath, task: str) -> dict[str, Any]:
    """A proof for another person of which classes one withheld request named; it says nothing about other requests.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of the run, with the full ledger and `withheld.key`.
        task (`str`):
            The task, e.g. `"task_002"`.

    Returns:
        `dict`: `task`, `classes`, `class_names` and the `key` of this one digest, for [`is_proof`].

    Raises:
        InvalidLedgerError: If there is no such task, the ledger does not name its classes, or the key is missing.
    """
    entry = next((entry for entry in ForgettingLedger.load(folder).tasks if entry.name == task), None)
    if entry is None or entry.classes is None:
        expected = f"a task whose classes the ledger in '{folder}' names"
        raise InvalidLedgerError("task", task, expected, "Use the folder of the original run.")
    return {**_statement(entry), "key": _key_of(entry.name, withholding_key(folder)).hex()}


def is_proof(published: ForgettingLedger, proof: Mapping[str, Any]) -> bool:
    """Whether a proof from [`request_proof`] fits the digest in a published ledger."""
    entry = next((entry for entry in published.tasks if entry.name == proof.get("task")), None)
    try:
        digest = _digest(bytes.fromhex(proof["key"]), {name: value for name, value in proof.items() if name != "key"})
    except (KeyError, TypeError, ValueError):
        return False
    return entry is not None and hmac.compare_digest(str(entry.request.get("digest")), digest)


def _digest_of(entry: TaskEntry, key: bytes) -> Any:
    if entry.request.get("withheld") and entry.classes is entry.class_names is None and not entry.sizes:
        return entry.request.get("digest")
    return _digest(_key_of(entry.name, key), _statement(entry))


def _statement(entry: TaskEntry) -> dict[str, Any]:
    return {"task": entry.name, "classes": entry.classes, "class_names": entry.class_names}


def _key_of(task: str, key: bytes) -> bytes:
    # A key of its own for each task, so that one digest can be opened without the others.
    return hmac.digest(key, task.encode(), hashlib.sha256)


def _digest(key: bytes, statement: Mapping[str, Any]) -> str:
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"))
    return _DIGEST + hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()
