"""Which tasks can be left out, although later ones were trained on top of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .entry import TaskEntry
from .errors import LaterTasksError


def check_separable(entries: Sequence[TaskEntry], chosen: Collection[str]) -> None:
    """Checks that some tasks in effect can be merged without the others.

    An adapter is added to the weights, whatever they are. A task that changed weights itself leaves their new values,
    which hold what earlier tasks did to the same tensors. Without such an earlier task, these values would bring it
    back: leaving it out would have no effect. Of an earlier adapter the ledger does not know the tensors, so that it
    counts as one that changed them, unless it changed nothing.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks of a ledger, in order.
        chosen (`Collection[str]`):
            Names of the tasks in effect that are merged.

    Raises:
        LaterTasksError: If a task that is left out changed tensors whose values a chosen one holds.
    """
    active = [entry for entry in entries if entry.status != "revoked"]
    for place, earlier in enumerate(active):
        if earlier.name in chosen:
            continue
        later = [entry.name for entry in active[place + 1 :] if entry.name in chosen and _holds(entry, earlier)]
        if later:
            raise LaterTasksError(
                f"{earlier.name} cannot be left out while {', '.join(later)} stay in effect: what they left are new "
                "values of weights that it may have changed, with its effect in them. Leave them out first (the last "
                f"one first), or keep {earlier.name}.",
                task=earlier.name,
                later=later,
            )


def _holds(later: TaskEntry, earlier: TaskEntry) -> bool:
    """Whether the values that a later task left depend on an earlier one."""
    changed = set(earlier.groups.get("active", []))
    if not later.leaves_weights or (not changed and earlier.groups.get("total")):
        return False
    return not earlier.leaves_weights or not changed.isdisjoint(later.groups.get("active", []))
