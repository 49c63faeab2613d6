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

from ..metrics.measures import AVERAGE_PRECISION
from ..sequence import ForgettingLedger, LedgerError, TaskEntry
from ..sequence.curves import KNOWN_BY
from ..sequence.layout import KEY_NAME
from ..sequence.outcome import measure_of_entry
from ..storage import StrPath, as_path, read_limited

_DIGEST = "hmac-sha256:"
_BASE_FIELDS = ("name_or_path", "revision", "model_class", "num_labels", "tied_heads", "fingerprint")
# Settings that are a number of samples of each class, or what data sets are told by.
_COUNTED = ("shots", "train_data", "evaluation_data")
_ROUNDED = {f"{role}_{known_by}" for role in ("retain", "forget") for known_by in KNOWN_BY}


def withheld_ledger(ledger: ForgettingLedger, key: bytes, folder: StrPath) -> ForgettingLedger:
    """The ledger without anything that names a class or tells one by its size.

    Of a request remain its number, its time and a keyed digest of its classes. Notes, reasons, names of labels,
    numbers of samples and of steps, and keys that this version does not know are left out. Scores and logged
    accuracies are rounded to whole percent: 0.9782608… says that there were 46 samples. Curves that were logged by
    step, not by epoch, count samples too and are left out. Entries that are withheld already stay as they are.

    Args:
        ledger ([`ForgettingLedger`]): the full ledger; not changed.
        key (`bytes`): see [`withholding_key`].
        folder (`str` or `os.PathLike`): where the new ledger is to lie; nothing is written.

    Returns:
        [`ForgettingLedger`]: with the same tasks and files.
    """
    base = {name: ledger.base_model[name] for name in _BASE_FIELDS if name in ledger.base_model}
    return ForgettingLedger(folder, base, None, [_withheld(entry, key) for entry in ledger.tasks])


def withholding_key(folder: StrPath, *, create: bool = False) -> bytes:
    """The secret key of a run's digests, from `withheld.key` in its folder (readable by its owner alone).

    It never leaves the machine: the classes of a model are few, and who has the key can try them all.

    Args:
        folder (`str` or `os.PathLike`): the folder of the run.
        create (`bool`, *optional*, defaults to `False`): make one if there is none.

    Raises:
        LedgerError: there is none, or it is damaged.
        OSError: it cannot be read or written.
    """
    path = as_path(folder, "folder") / KEY_NAME
    if create and not path.exists():
        # Whole or absent, and never readable by others, not even for a moment.
        staged = path.with_name(f".staging-{KEY_NAME}-{secrets.token_hex(8)}")
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(fd)
        os.replace(staged, path)
    try:
        key = bytes.fromhex(read_limited(path, 1000).decode("ascii"))
    except FileNotFoundError:
        raise LedgerError(
            f"'{path}' does not exist; expected the key that publishing with withheld classes made. Restore it."
        ) from None
    except ValueError:
        key = b""
    if len(key) != 32:
        raise LedgerError(f"'{path}' is damaged; expected 64 hexadecimal digits. Restore it from a backup.")
    return key


def request_proof(folder: StrPath, task: str) -> dict[str, Any]:
    """What proves to somebody else which classes one withheld request named; it says nothing about other requests.

    Args:
        folder (`str` or `os.PathLike`): the folder of the run, with the full ledger and `withheld.key`.
        task (`str`): the task, e.g. `"task_002"`.

    Returns:
        `dict`: `task`, `classes`, `class_names` and the `key` of this one digest, for [`is_proof`].

    Raises:
        LedgerError: there is no such task, its classes are not known here either, or there is no key.
    """
    entry = next((entry for entry in ForgettingLedger.load(folder).tasks if entry.name == task), None)
    if entry is None or entry.classes is None:
        raise LedgerError(
            f"the ledger in '{folder}' does not say which classes {task!r} forgot. Use the original run."
        )
    return {**_statement(entry), "key": _key_of(entry.name, withholding_key(folder)).hex()}


def is_proof(published: ForgettingLedger, proof: Mapping[str, Any]) -> bool:
    """Whether a proof from [`request_proof`] fits the digest in a published ledger."""
    entry = next((entry for entry in published.tasks if entry.name == proof.get("task")), None)
    try:
        digest = _digest(bytes.fromhex(proof["key"]), {name: value for name, value in proof.items() if name != "key"})
    except (KeyError, TypeError, ValueError):
        return False
    return entry is not None and hmac.compare_digest(str(entry.request.get("digest")), digest)


def _withheld(entry: TaskEntry, key: bytes) -> TaskEntry:
    if entry.request.get("withheld") and entry.classes is entry.class_names is None and not entry.sizes:
        return entry
    digest = _digest(_key_of(entry.name, key), _statement(entry))
    settings: dict[str, Any] = {
        name: entry.settings[name] for name in ("config", "training") if name in entry.settings
    }
    data = {name: value for name, value in entry.settings.get("data", {}).items() if name not in _COUNTED}
    return dataclasses.replace(
        entry,
        request={"withheld": True, "digest": digest, "requested_at": entry.request.get("requested_at")},
        classes=None,
        class_names=None,
        missing_classes=None,
        sizes={},
        settings={**settings, "data": data},
        scores=_rounded_scores(entry.scores),
        revocation=_withheld_revocation(entry.revocation),
        curves=_rounded_curves(entry.curves),
        outcome=_rounded_outcome(entry),
        extra={},
    )


def _withheld_revocation(revocation: dict[str, Any] | None) -> dict[str, Any] | None:
    if revocation is None:
        return None
    scores = {name: revocation.get(name) for name in ("scores_before", "scores_after")}
    return {"revoked_at": revocation.get("revoked_at"), "reason": None, **_rounded_scores(scores)}


def _rounded_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies in whole percent; numbers of rows left out."""
    kept: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            kept[name] = {
                key: None if number is None else round(number, 2)
                for key, number in value.items()
                if not key.startswith("n_") and (number is None or isinstance(number, (int, float)))
            }
        elif value is None or name == "data":
            kept[name] = value
    return kept


def _rounded_outcome(entry: TaskEntry) -> dict[str, Any] | None:
    """Verdicts as they are, scores in whole percent; the target of a detector is a share of a score."""
    if entry.outcome is None:
        return None
    target = entry.target
    if target is not None and measure_of_entry(entry) == AVERAGE_PRECISION:
        target = round(target, 2)
    earlier = {
        task: {
            "score": None if found.get("score") is None else round(found["score"], 2),
            "forgotten": found.get("forgotten"),
        }
        for task, found in entry.outcome.get("earlier", {}).items()
    }
    known = {name: entry.outcome.get(name) for name in ("forgotten", "known_before")}
    return {**known, "target": target, "earlier": earlier}


def _rounded_curves(curves: dict[str, Any] | None) -> dict[str, Any] | None:
    if curves is None or any(epoch != int(epoch) for epoch in curves["epoch"]):
        return None
    return {
        name: [round(value, 2) for value in values] if name in _ROUNDED else values for name, values in curves.items()
    }


def _statement(entry: TaskEntry) -> dict[str, Any]:
    return {"task": entry.name, "classes": entry.classes, "class_names": entry.class_names}


def _key_of(task: str, key: bytes) -> bytes:
    # A key of its own for each task, so that one digest can be opened without the others.
    return hmac.digest(key, task.encode(), hashlib.sha256)


def _digest(key: bytes, statement: Mapping[str, Any]) -> str:
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"))
    return _DIGEST + hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()
