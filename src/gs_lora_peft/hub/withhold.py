"""Publishing that something was forgotten without saying what."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..io import StrPath, as_path, read_limited
from ..ledger import KEY_NAME, KNOWN_BY, ForgettingLedger, InvalidLedgerError, TaskEntry, metric_of, parse_utc
from ..metrics import AVERAGE_PRECISION

# Settings that give away a number of samples: per class, or through steps and epochs. Also what identifies the data
# sets, and the name of a user's function.
_COUNTED = ("shots", "max_steps", "train_data", "evaluation_data", "augment")


_ROUNDED = {f"{role}_{known_by}" for role in ("retain", "forget") for known_by in KNOWN_BY}


_END_OF_TIME = "9999-12-31T00:00:00+00:00"


# What is kept as it is: it says nothing of classes.
_KEPT = ("name", "versions", "files", "groups", "status")


def without_counts(entries: Sequence[TaskEntry]) -> list[TaskEntry]:
    """The entries without classes, notes, reasons, numbers of samples and of steps, and unknown keys.

    Of times remains the day: a training takes as long as it has samples. Scores and logged accuracies are rounded to
    whole per cent: 0.9782608… says that there were 46 samples. Curves that were logged by step, not by epoch, count
    samples too and are left out. Fields that a later version may add keep what is true, false or a share. Entries that
    are so already stay as they are.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks of a ledger, in order; not changed.
    """
    revoked = [entry for entry in entries if entry.revocation]
    revoked.sort(key=lambda entry: _moment(_revoked_at(entry) or _END_OF_TIME))
    order = {entry.name: place for place, entry in enumerate(revoked, start=1)}
    return [_coarse(entry, entries, order.get(entry.name, 0)) for entry in entries]


def _coarse(entry: TaskEntry, entries: Sequence[TaskEntry], order: int) -> TaskEntry:
    settings = {
        part: {name: value for name, value in entry.settings[part].items() if name not in _COUNTED}
        for part in ("config", "training", "data", "method")
        if isinstance(entry.settings.get(part), dict)
    }
    proof = {name: entry.request[name] for name in ("withheld", "digest") if name in entry.request}
    made: dict[str, Any] = {
        "request": {**proof, "requested_at": _day(entry.request.get("requested_at"))},
        "classes": None,
        "class_names": None,
        "missing_classes": None,
        "started_at": _day(entry.started_at),
        "finished_at": _day(entry.finished_at),
        "sizes": {},
        "settings": settings,
        "scores": _rounded_scores(entry.scores),
        "revocation": _coarse_revocation(entry, entries, order),
        "curves": _rounded_curves(entry.curves),
        "outcome": _rounded_outcome(entry),
        "extra": {},
    }
    later = {
        field.name: _share(getattr(entry, field.name))
        for field in dataclasses.fields(entry)
        if field.name not in (*_KEPT, *made)
    }
    return dataclasses.replace(entry, **made, **later)


def _coarse_revocation(entry: TaskEntry, entries: Sequence[TaskEntry], order: int) -> dict[str, Any] | None:
    revocation = entry.revocation
    if revocation is None:
        return None
    scores = {name: revocation.get(name) for name in ("scores_before", "scores_after")}
    moment = _revoked_at(entry)
    done = [other.name for other in entries if moment and _moment(other.finished_at) <= _moment(moment)]
    return {
        "revoked_at": _day(moment),
        "reason": None,
        # What came first on one and the same day decides which scores are those of the present model.
        "last_task": revocation.get("last_task", done[-1] if done else None),
        "order": revocation.get("order", order),
        **_rounded_scores(scores),
    }


def _rounded_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies in whole per cent; numbers of rows left out."""
    kept: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            kept[name] = _share({key: item for key, item in value.items() if item is None or _is_number(item)})
        elif value is None or name == "data":
            kept[name] = value
        elif (share := _share(value)) is not None:
            kept[name] = share
    return kept


def _rounded_outcome(entry: TaskEntry) -> dict[str, Any] | None:
    """Verdicts as they are, scores in whole per cent; the target of a detector is a share of a score."""
    if entry.outcome is None:
        return None
    exact = metric_of(entry) != AVERAGE_PRECISION
    return {**_share(entry.outcome), **({"target": entry.target} if exact else {})}


def _rounded_curves(curves: dict[str, Any] | None) -> dict[str, Any] | None:
    if curves is None or any(epoch != int(epoch) for epoch in curves["epoch"]):
        return None
    return {
        name: [round(value, 2) for value in values] if name in _ROUNDED else values for name, values in curves.items()
    }


def _share(value: Any) -> Any:
    """What is true, false, or a share in whole per cent; of a dict the values that are; `None` of anything else."""
    if isinstance(value, dict):
        kept = {key: _share(item) for key, item in value.items() if not key.startswith("n_")}
        return {key: item for key, item in kept.items() if item is not None or value[key] is None}
    if isinstance(value, bool) or not _is_number(value):
        return value if isinstance(value, bool) else None
    return round(value, 2) if -1 <= value <= 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _revoked_at(entry: TaskEntry) -> str | None:
    return _checked((entry.revocation or {}).get("revoked_at"))


def _day(text: Any) -> Any:
    """The day on which a moment was, in UTC, as the moment at which it began."""
    moment = _checked(text)
    return None if moment is None else f"{moment[:10]}T00:00:00Z"


def _checked(text: Any) -> str | None:
    try:
        return parse_utc(text)
    except ValueError:
        return None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


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
