"""The ledger as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .ledger import ForgettingLedger

_COLUMNS = (
    "task",
    "forgotten",
    "Acc_f before",
    "Acc_f",
    "Acc_r base",
    "Acc_r before",
    "Acc_r",
    "Acc_o",
    "Acc_m before",
    "Acc_m",
    "H",
    "active groups",
    "steps",
)


def format_table(ledger: ForgettingLedger) -> str:
    """Plain text, one row per task: accuracies in percent on the evaluation data, and how many groups are not zero.

    Acc_f: forgotten classes, Acc_r: kept classes, Acc_o: classes forgotten by earlier tasks, Acc_m (only where there
    are any): classes kept without training data; before and after a task.
    Acc_r base: the base model on the kept classes. A line above says how the base model does on all classes.
    """
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for entry in ledger.tasks:
        before, after = entry.scores.get("before", {}), entry.scores.get("after", {})
        rows.append(
            (
                entry.name + (" (revoked)" if entry.status == "revoked" else ""),
                _shortened(entry.class_names or entry.classes or ["withheld"]),
                _percent(before.get("acc_forget")),
                _percent(after.get("acc_forget")),
                _percent(entry.scores.get("base", {}).get("acc_retain")),
                _percent(before.get("acc_retain")),
                _percent(after.get("acc_retain")),
                _percent(after.get("acc_old")),
                _percent(before.get("acc_missing")),
                _percent(after.get("acc_missing")),
                _percent(after.get("h_mean")),
                f"{len(entry.groups.get('active', []))} of {entry.groups.get('total', 0)}",
                str(entry.sizes.get("steps", "")),
            )
        )
    if all(entry.scores.get("after", {}).get("acc_missing") is None for entry in ledger.tasks):
        rows = [tuple(cell for cell, name in zip(row, _COLUMNS, strict=True) if "Acc_m" not in name) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    bases = [entry.scores["base"]["acc_all"] for entry in ledger.tasks if "acc_all" in entry.scores.get("base", {})]
    title = [f"Base model: {_percent(bases[0])} % of all evaluation samples are right.", ""] if bases else []
    return "\n".join([*title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _shortened(names: Sequence[Any], limit: int = 30) -> str:
    text = ", ".join(map(str, names))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
