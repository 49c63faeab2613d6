"""The ledger on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..metrics.measures import ACCURACY, AVERAGE_PRECISION, MetricName
from ..sequence import ForgettingLedger, TaskEntry, task_states
from ..sequence.remarks import doubts, not_forgotten
from ..sequence.table import measure_of_tasks
from ..tables import percent
from .output import printable

_LEGEND = (
    "{title} in percent{data}, before→after a task. {f}: classes to forget, {r}: kept ones, {o}: those forgotten by "
    "earlier tasks; H: harmonic mean of {r} and the drop of {f}; groups: those not zero."
)
_TITLES = {ACCURACY: "Accuracies", AVERAGE_PRECISION: "Average precisions (AP@[.5:.95])"}


def print_ledger(ledger: ForgettingLedger) -> None:
    """Prints who the base model is, one row for each task, and what is not as asked for; fits 80 columns."""
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("task", no_wrap=True)
    table.add_column("done on", no_wrap=True)
    table.add_column("to forget", overflow="fold", min_width=10)
    measure = measure_of_tasks(ledger.tasks)
    symbols = {role[0]: measure.symbol_of(role) for role in ("forget", "retain", "old")}
    for title in (*symbols.values(), "H", "groups"):
        table.add_column(title, justify="right", no_wrap=True)
    verdicts = {state.entry.name: state.verdict for state in task_states(ledger.tasks)}
    for entry in ledger.tasks:
        cells = _row(entry, measure, verdicts.get(entry.name, "revoked"))
        table.add_row(*(Text(printable(cell)) for cell in cells), style="dim" if entry.status == "revoked" else None)
    for line in _about(ledger):
        console.print(Text(printable(line)), soft_wrap=True)
    if ledger.tasks:
        console.print(table)
        legend = _LEGEND.format(title=_TITLES[measure], data=_scored_on(ledger), **symbols)
        console.print(Text(printable(legend)), style="dim")
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


def _row(entry: TaskEntry, measure: MetricName, verdict: str) -> list[str]:
    before, after = entry.scores.get("before", {}), entry.scores.get("after", {})
    forgotten = entry.class_names or entry.classes or ["withheld"]
    groups = f"{len(entry.groups['active'])}/{entry.groups.get('total', '?')}" if "active" in entry.groups else "–"
    return [
        entry.name,
        entry.finished_at[:10],
        ("" if verdict in ("forgotten", "–") else f"{verdict}: ") + ", ".join(map(str, forgotten)),
        *(f"{_percent(before, key)}→{_percent(after, key)}" for key in map(measure.key, ("forget", "retain"))),
        _percent(after, measure.key("old")),
        _percent(after, "h_mean"),
        groups,
    ]


def _percent(scores: Mapping[str, Any], name: str) -> str:
    value = scores.get(name)
    return percent(value if isinstance(value, (int, float)) else None)


def _scored_on(ledger: ForgettingLedger) -> str:
    """On what the tasks were scored, if it is the same for all."""
    names = {entry.scores.get("data") for entry in ledger.tasks}
    name = names.pop() if len(names) == 1 else None
    return f" on the data '{name}'" if name else ""
