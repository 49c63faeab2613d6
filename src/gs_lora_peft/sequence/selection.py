"""Picking tasks by number or by name."""

from __future__ import annotations

from collections.abc import Sequence

from .entry import TaskEntry
from .plain import InvalidLedgerError


def why_none(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> str:
    """Says why [`select_tasks`] gives no task, and what to do."""
    if not entries:
        return "it has no task. Carry out a request first."
    if all(entry.status == "revoked" for entry in entries):
        return f"all of its {len(entries)} task(s) are revoked. Carry a request out again first."
    return f"tasks is {wanted!r}. Choose at least one."


def select_tasks(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> list[TaskEntry]:
    """Picks tasks in effect, always in the order in which they were carried out.

    Args:
        entries (`Sequence[TaskEntry]`): All tasks, the revoked ones too.
        wanted (`int`, `Sequence[str]` or `None`): The first so many of the tasks in effect, or their names; or all.

    Raises:
        LedgerError: Fewer tasks, an unknown name, a revoked task, or something else altogether.
    """
    active = [entry for entry in entries if entry.status != "revoked"]
    there = f"The tasks in effect are: {', '.join(entry.name for entry in active) or 'none'}."
    if wanted is None:
        return active
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 0 <= wanted <= len(active):
            raise InvalidLedgerError("tasks", wanted, f"a number from 0 to {len(active)}", there)
        return active[:wanted]
    if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Sequence):
        raise InvalidLedgerError("tasks", wanted, "None, a number or a list of names", there)
    status = {entry.name: entry.status for entry in entries}
    for name in wanted:
        if not isinstance(name, str) or name not in status:
            raise InvalidLedgerError("tasks", name, "the name of a task", there)
        if status[name] == "revoked":
            raise InvalidLedgerError("tasks", name, "a task in effect; this one was revoked", there)
    if len(set(wanted)) < len(wanted):
        raise InvalidLedgerError("tasks", list(wanted), "each name once", there)
    return [entry for entry in active if entry.name in wanted]
