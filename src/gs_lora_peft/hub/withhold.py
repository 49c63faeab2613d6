"""Publishing that classes were forgotten without naming them."""

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
from ..ledger import (
    KEY_NAME,
    KNOWN_BY,
    ForgettingLedger,
    InvalidLedgerError,
    TaskEntry,
    audit_verdict,
    metric_of,
    parse_utc,
)
from ..metrics import AVERAGE_PRECISION
from .card_metadata import revocation_time

# Settings that reveal a number of samples: per class, or through steps and epochs. Also the identity of data sets, and
# the name of a user's function.
_COUNTED = ("shots", "max_steps", "train_data", "evaluation_data", "augment")
_ROUNDED = {f"{role}_{known_by}" for role in ("retain", "forget") for known_by in KNOWN_BY}
# Fields that say nothing of classes.
_KEPT = ("name", "versions", "files", "groups", "status")
_BASE_FIELDS = ("name_or_path", "revision", "model_class", "num_labels", "tied_heads", "fingerprint")
_AUDIT_KEPT = ("tasks", "recovered", "reference", "references", "attacks", "quick")
_DIGEST = "hmac-sha256:"


def withheld_ledger(ledger: ForgettingLedger, key: bytes, folder: StrPath) -> ForgettingLedger:
    """Returns a ledger that neither names a class nor reveals one by its size, see [`without_counts`].

    A request keeps its number, its day and a keyed digest of its classes. Withheld entries keep their digests.

    Args:
        ledger ([`ForgettingLedger`]):
            The full ledger; not changed.
        key (`bytes`):
            See [`withholding_key`].
        folder (`str` or `os.PathLike`):
            The folder of the new ledger. Nothing is written.

    Returns:
        [`ForgettingLedger`]: A ledger with the same tasks and files.
    """
    base = {name: ledger.base_model[name] for name in _BASE_FIELDS if name in ledger.base_model}
    coarse = without_counts(ledger.tasks)
    entries = [
        dataclasses.replace(new, request={**new.request, "withheld": True, "digest": _digest_of(old, key)})
        for old, new in zip(ledger.tasks, coarse, strict=True)
    ]
    return ForgettingLedger(folder, base, None, entries, audit=coarse_audit(ledger.audit))


def withholds_by_default(folder: StrPath) -> bool:
    """Returns whether a run was published before with withheld classes: its folder has a key then."""
    return (as_path(folder, "folder") / KEY_NAME).exists()


def withholding_key(folder: StrPath, *, create: bool = False) -> bytes:
    """Returns the secret key of a run's digests, from `withheld.key` in its folder (readable only by its owner).

    Keep the key on this machine: a model has few classes, and with the key all of them can be tried.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of the run.
        create (`bool`, *optional*, defaults to `False`):
            Whether to make a key if the folder has none.

    Returns:
        `bytes`: 32 bytes.

    Raises:
        InvalidLedgerError: If the key is missing or damaged.
        OSError: If it cannot be read or written.
    """
    path = as_path(folder, "folder") / KEY_NAME
    if create and not path.exists():
        # The file appears complete, and is never readable by others. Without a lock, a run can be published while it
        # goes on: if two processes make a key at the same time, the first key stays.
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
    """Returns a proof of the classes that one withheld request named. It reveals nothing about other requests.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of the run, with the full ledger and `withheld.key`.
        task (`str`):
            Name of the task, e.g. `"task_002"`.

    Returns:
        `dict`: `task`, `classes`, `class_names` and the `key` of this one digest, for [`is_proof`].

    Raises:
        InvalidLedgerError: If the task is unknown, the ledger withholds its classes, or the key is missing.
    """
    entry = next((entry for entry in ForgettingLedger.load(folder).tasks if entry.name == task), None)
    if entry is None or entry.classes is None:
        expected = f"a task whose classes the ledger in '{folder}' names"
        raise InvalidLedgerError("task", task, expected, "Use the folder of the original run.")
    return {**_statement(entry), "key": _key_of(entry.name, withholding_key(folder)).hex()}


def is_proof(published: ForgettingLedger, proof: Mapping[str, Any]) -> bool:
    """Checks a proof against the digest in a published ledger.

    Args:
        published ([`ForgettingLedger`]):
            The published ledger.
        proof (`Mapping[str, Any]`):
            From [`request_proof`].

    Returns:
        `bool`: Whether the proof is valid.
    """
    entry = next((entry for entry in published.tasks if entry.name == proof.get("task")), None)
    try:
        digest = _digest(bytes.fromhex(proof["key"]), {name: value for name, value in proof.items() if name != "key"})
    except (KeyError, TypeError, ValueError):
        return False
    return entry is not None and hmac.compare_digest(str(entry.request.get("digest")), digest)


def without_counts(entries: Sequence[TaskEntry]) -> list[TaskEntry]:
    """Returns entries without classes, notes, reasons, numbers of samples and of steps, and unknown keys.

    Times are reduced to days, because the duration of a training reveals the number of samples. Scores and logged
    accuracies are rounded to whole per cent: 0.9782608… reveals 46 samples. Curves that were logged by step instead of
    by epoch count samples too, and are omitted. Fields of later versions keep truth values and rounded shares.
    Entries that are reduced already do not change.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks of a ledger, in order; not changed.

    Returns:
        `list[TaskEntry]`: The new entries.
    """
    revoked = [entry for entry in entries if entry.revocation]
    revoked.sort(key=revocation_time)
    order = {entry.name: place for place, entry in enumerate(revoked, start=1)}
    return [_coarse(entry, entries, order.get(entry.name, 0)) for entry in entries]


def coarse_audit(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the record of an audit in whole points, with its day alone, and without the files of its report.

    The report has numbers of samples, and figures that reveal them.

    Args:
        audit (`Mapping[str, Any]`, *optional*):
            `audit` of a ledger; not changed.
    """
    if audit is None:
        return None
    kept = {name: audit[name] for name in _AUDIT_KEPT}
    gap = audit["recovery_gap"]
    if gap is not None:
        texts = {name: gap[name] for name in ("attack", "title", "setting", "where", "judged") if name in gap}
        gap = {"points": round(gap["points"]), "margin": round(gap["margin"]), **texts}
    noise = None if audit.get("noise") is None else round(audit["noise"])
    answers: dict[str, Any] = {"recognised": audit.get("recognised"), "kept": _whole_kept(audit.get("kept"))}
    verdict = audit_verdict(gap, audit["recovered"], audit["reference"], noise=noise, decimals=0, **answers)
    day = _day(audit["recorded_at"])
    return {
        **kept,
        "recovery_gap": gap,
        "noise": noise,
        **answers,
        "verdict": verdict,
        "recorded_at": day,
        "files": {},
    }


def _whole_kept(kept: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns what models know of the kept samples in whole per cent."""
    if kept is None:
        return None
    return {"original": round(kept["original"]), "references": [round(share) for share in kept["references"]]}


# Digests


def _digest_of(entry: TaskEntry, key: bytes) -> Any:
    if entry.request.get("withheld") and entry.classes is entry.class_names is None and not entry.sizes:
        return entry.request.get("digest")
    return _digest(_key_of(entry.name, key), _statement(entry))


def _statement(entry: TaskEntry) -> dict[str, Any]:
    return {"task": entry.name, "classes": entry.classes, "class_names": entry.class_names}


def _key_of(task: str, key: bytes) -> bytes:
    # Each task has its own key, so that one digest can be proved without the others.
    return hmac.digest(key, task.encode(), hashlib.sha256)


def _digest(key: bytes, statement: Mapping[str, Any]) -> str:
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"))
    return _DIGEST + hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()


# Entries without classes and counts


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
        "cost": {"trainable": entry.cost["trainable"]} if "trainable" in (entry.cost or {}) else None,  # type: ignore[index]
        "method_files": None,
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
    day = _day(revocation.get("revoked_at"))
    done = [other.name for other in entries if day and _finished_at(other) <= revocation_time(entry)]
    return {
        "revoked_at": day,
        "reason": None,
        # With days alone, these two decide which scores are those of the present model.
        "last_task": revocation.get("last_task", done[-1] if done else None),
        "order": revocation.get("order", order),
        **_rounded_scores(scores),
    }


def _rounded_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns scores in whole per cent, without numbers of rows."""
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
    """Returns exact verdicts, and scores in whole per cent. The target of a detector is a share of a score."""
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
    """Returns truth values as they are, shares in whole per cent, such values of a dict, and `None` otherwise."""
    if isinstance(value, dict):
        kept = {key: _share(item) for key, item in value.items() if not key.startswith("n_")}
        return {key: item for key, item in kept.items() if item is not None or value[key] is None}
    if isinstance(value, bool) or not _is_number(value):
        return value if isinstance(value, bool) else None
    return round(value, 2) if -1 <= value <= 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _finished_at(entry: TaskEntry) -> datetime:
    return datetime.fromisoformat(entry.finished_at)


def _day(text: Any) -> str | None:
    """Returns the beginning of the day of a moment, in UTC; `None` if `text` is not a moment."""
    try:
        return f"{parse_utc(text)[:10]}T00:00:00Z"
    except ValueError:
        return None
