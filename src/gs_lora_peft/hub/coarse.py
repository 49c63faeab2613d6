"""Entries of a ledger without what tells a class by its size: exact times, exact shares, and numbers of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..metrics.measures import AVERAGE_PRECISION
from ..sequence import TaskEntry
from ..sequence.curves import KNOWN_BY
from ..sequence.outcome import measure_of_entry
from ..sequence.request import parse_utc

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
    exact = measure_of_entry(entry) != AVERAGE_PRECISION
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
