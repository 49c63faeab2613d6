"""How a task is carried out again on which others rest, in Python and on the command line."""

from __future__ import annotations

import shlex

from .ledger import ForgettingLedger


def advice_to_redo(ledger: ForgettingLedger, name: str) -> str:
    """The calls that carry a task in effect out again: those that revoke what came later, then the one that redoes it.

    Args:
        ledger ([`ForgettingLedger`]): The run.
        name (`str`): A task in effect.
    """
    redo = f"redo({name!r}), in the examples --redo {name}"
    names = [entry.name for entry in ledger.active_tasks]
    later = names[names.index(name) + 1 :][::-1]
    if not later:
        return redo
    calls = ", ".join(f"revoke({other!r})" for other in later)
    folder = shlex.quote(str(ledger.folder))
    commands = "; ".join(f"gs-lora revoke {folder} {other}" for other in later)
    return (
        f"{calls} (or `{commands}`), then {redo}; run() with all requests, as the examples do, then carries the "
        "revoked ones out again"
    )
