"""The ledger on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..sequence import ForgettingLedger
from ..sequence.remarks import doubts, not_forgotten
from ..sequence.table import narrow_table
from .output import printable


def print_ledger(ledger: ForgettingLedger) -> None:
    """Print the base model, one row for each task, and what is not as asked for, in 80 columns."""
    console = Console(highlight=False)
    for line in _about(ledger):
        console.print(Text(printable(line)), soft_wrap=True)
    if ledger.tasks:
        table = narrow_table(ledger)
        revoked = [number for number, entry in enumerate(ledger.tasks) if entry.status == "revoked"]
        console.print(table.to_rich(fold="to forget", faint=revoked))
        for note in table.notes:
            console.print(Text(printable(note)), style="dim")
    for line in (*not_forgotten(ledger), *doubts(ledger)):
        console.print(Text(printable(line)))


def _about(ledger: ForgettingLedger) -> list[str]:
    base, active = ledger.base_model, len(ledger.active_tasks)
    name, model_class = (base.get(key) or "unknown" for key in ("name_or_path", "model_class"))
    revision = f" at {base['revision'][:12]}" if base.get("revision") else ""
    count = f", {base['num_labels']} labels" if base.get("num_labels") is not None else ""
    lines = [
        f"Base model: {name}{revision}",
        f"Class:      {model_class}{count}",
        f"Weights:    {base['fingerprint'][:19]}...",
        f"Tasks:      {len(ledger.tasks)}, of which {active} in effect",
    ]
    for entry in ledger.tasks:
        if entry.revocation is not None:
            reason = f": {entry.revocation['reason']}" if entry.revocation.get("reason") else ""
            lines.append(f"{entry.name} was revoked on {str(entry.revocation.get('revoked_at'))[:10]}{reason}")
    return lines
