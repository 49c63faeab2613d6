"""Judging finished tasks by another target, from the scores in the ledger: nothing is trained or measured for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reports import short_percent
from .ledger import ForgettingLedger
from .outcome import target_score, task_states, verdict
from .remarks import class_list


def judged_anew(ledger: ForgettingLedger, allowed: Mapping[str, float | str]) -> dict[str, dict[str, Any]]:
    """The outcomes that change if tasks in effect are judged by other targets.

    Later tasks measured the classes of earlier ones again, so that their outcomes may change as well. Tasks of a
    ledger that was made before outcomes were recorded stay as they are.

    Args:
        ledger ([`ForgettingLedger`]): The tasks; it is not changed.
        allowed (`Mapping[str, float | "auto"]`): `max_forget_accuracy` by the name of a task, as in [`target_score`].

    Returns:
        `dict[str, dict]`: The new outcome by the name of the task, of those alone that differ.
    """
    judged = [entry for entry in ledger.active_tasks if entry.outcome is not None]
    targets: dict[str, float | None] = {}
    for entry in judged:
        if entry.name in allowed:
            before, num_labels = entry.scores.get("before", {}), ledger.base_model.get("num_labels")
            target = target_score(allowed[entry.name], before, num_labels)
            targets |= {entry.name: target} if target != entry.target else {}
    outcomes = {}
    for entry in judged:
        outcome = dict(entry.outcome or {})
        if entry.name in targets:
            before, after = (entry.scores.get(when, {}) for when in ("before", "after"))
            outcome |= verdict(before, after, targets[entry.name])
        if "earlier" in outcome:
            outcome["earlier"] = {
                name: {**found, **_judged(found, targets[name])} if name in targets else found
                for name, found in outcome["earlier"].items()
            }
        if outcome != entry.outcome:
            outcomes[entry.name] = outcome
    return outcomes


def described_anew(earlier: Mapping[str, float | None], ledger: ForgettingLedger) -> str:
    """One sentence on tasks whose target changed.

    Args:
        earlier (`Mapping[str, float | None]`): Their targets before, by name.
        ledger ([`ForgettingLedger`]): With the new outcomes.
    """
    alike: dict[str, list[str]] = {}
    for state in task_states(ledger.tasks):
        name, now = state.entry.name, state.entry.target
        if name in earlier and earlier[name] != now:
            how = f"{state.verdict} (target: at most {short_percent(now)} %, before {short_percent(earlier[name])} %)"
            alike.setdefault(how, []).append(name)
    parts = [f"{class_list(names)}: {how}" for how, names in alike.items()]
    shown = "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")
    return f"Judged anew by max_forget_accuracy, from the scores in the ledger, and recorded there: {shown}."


def _judged(found: Mapping[str, Any], target: float | None) -> dict[str, bool | None]:
    score = found.get("score")
    return {"forgotten": None if score is None or target is None else score <= target}
