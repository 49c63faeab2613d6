"""What the scores of a ledger still say about what is published: a task may have been revoked since."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..sequence import TaskEntry
from ..sequence.request import parse_utc


def revoked_since(entry: TaskEntry, entries: Sequence[TaskEntry]) -> list[str]:
    """The earlier tasks that were in effect when a task was scored, and have been revoked since."""
    earlier = [other for other in entries if other.number < entry.number and other.status == "revoked"]
    return [other.name for other in earlier if not _revoked_before(other, entry)]


def scored_last(entries: Sequence[TaskEntry]) -> TaskEntry | None:
    """The task with whose completion or revocation the model reached its present state; `None` without any task."""
    done = [entry for entry in entries if entry.status != "revoked"]
    revoked = [entry for entry in entries if entry.status == "revoked"]
    since = [entry for entry in revoked if not done or not _revoked_before(entry, done[-1])]
    return max(since, key=lambda entry: (_moment(entry), _order(entry)), default=None) or (done[-1] if done else None)


def _revoked_before(revoked: TaskEntry, entry: TaskEntry) -> bool:
    # A withheld ledger has the day alone, and says which task was the last one before.
    last = (revoked.revocation or {}).get("last_task")
    if isinstance(last, str) and last.removeprefix("task_").isdecimal():
        return int(last.removeprefix("task_")) < entry.number
    # A revocation takes the lock that training holds: it cannot fall between start and end.
    return _moment(revoked) < datetime.fromisoformat(entry.finished_at)


def _moment(revoked: TaskEntry) -> datetime:
    """When a task was revoked; the end of time where the ledger does not say, so that nothing is taken for current."""
    try:
        return datetime.fromisoformat(parse_utc((revoked.revocation or {}).get("revoked_at")))
    except ValueError:
        return datetime.fromisoformat("9999-12-31T00:00:00+00:00")


def _order(revoked: TaskEntry) -> int:
    """Which of the revocations it was, where a withheld ledger says so."""
    order = (revoked.revocation or {}).get("order")
    return order if isinstance(order, int) else 0
