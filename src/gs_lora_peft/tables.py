"""Tables in plain text, for every module that prints one."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """A rate from 0 to 1 in percent, one decimal; a dash where nothing was measured."""
    return "–" if value is None else f"{100 * value:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: its first row is the heads, below which a rule is drawn."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
