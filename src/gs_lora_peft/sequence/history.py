"""Whether one ledger goes on where another one stops."""

from __future__ import annotations

from itertools import zip_longest

from .base_model import first_digits
from .ledger import ForgettingLedger


def history_problem(older: ForgettingLedger, newer: ForgettingLedger) -> str | None:
    """Says why `newer` does not continue `older`, or `None` if it does: the same base and tasks, and perhaps more.

    Tasks are the same if their files are. So it does not matter whether one of the ledgers withholds the classes. A
    task may be revoked in `newer` alone.
    """
    mine, other = older.base_model["fingerprint"], newer.base_model["fingerprint"]
    if mine != other:
        return f"it rests on other base weights ({first_digits(other)} instead of {first_digits(mine)})"
    for entry, found in zip_longest(older.tasks, newer.tasks[: len(older.tasks)]):
        if found is None or found.name != entry.name:
            return f"it lacks {entry.name}, finished at {entry.finished_at}"
        names = sorted(entry.files.keys() | found.files.keys())
        if different := [name for name in names if entry.files.get(name) != found.files.get(name)]:
            return f"its {entry.name} is another one ({', '.join(different)} differ)"
        if entry.status == "revoked" and found.status != "revoked":
            return f"its {entry.name} is not revoked"
    return None


def is_withheld(ledger: ForgettingLedger) -> bool:
    """Whether the ledger keeps the classes of a task to itself."""
    return bool(withheld_tasks(ledger))


def withheld_tasks(ledger: ForgettingLedger) -> list[str]:
    """The tasks whose classes the ledger keeps to itself."""
    return [entry.name for entry in ledger.tasks if entry.classes is None]
