"""What every attack gets back from every method, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ledger import TOLERANCE
from ..reports import Table

Row = dict[str, Any]


def attack_table(setting: str, rows: Sequence[Row]) -> Table:
    """Returns a line for each attack and each of its settings: value and excess for each method.

    Both are means over seeds, at the place (a block, a signal) where the mean excess of the method is largest. The
    last lines count the figures whose mean excess is above 5 points, and name the largest.

    Args:
        setting (`str`):
            Name of the setting.
        rows (`Sequence[dict]`):
            Rows of `BenchmarkResults.attacks` in this setting.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    groups: dict[tuple[str, str], None] = dict.fromkeys((row["attack"], row["attack_setting"]) for row in rows)
    means = {method: _means([row for row in rows if row["method"] == method]) for method in methods}
    cells = []
    for attack, own in groups:
        found = [_worst(means[method], attack, own) for method in methods]
        cells.append([f"{attack}, {own}", *("–" if f is None else f"{f[0]:.1f} ({f[1]:+.1f})" for f in found)])
    excesses = [[excess for _, excess in means[method].values()] for method in methods]
    above = [sum(value > TOLERANCE for value in own) for own in excesses]
    cells.append(
        [f"figures above {TOLERANCE:g}", *(f"{n} of {len(own)}" for n, own in zip(above, excesses, strict=True))]
    )
    cells.append(["largest excess", *(f"{max(own):.1f}" if own else "–" for own in excesses)])
    seeds = len({row["seed"] for row in rows})
    return Table(
        ["attack", *methods],
        cells,
        align="l" + "r" * len(methods),
        caption=f"{setting}: points recovered, and by how many more than from retrained models; up to {seeds} seeds",
    )


def _means(rows: Sequence[Row]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Mean value and mean excess over seeds, by attack, setting and place."""
    places: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        places.setdefault((row["attack"], row["attack_setting"], row["where"]), []).append(row)
    return {
        place: (float(np.mean([r["value"] for r in own])), float(np.mean([r["excess"] for r in own])))
        for place, own in places.items()
    }


def _worst(
    means: dict[tuple[str, str, str], tuple[float, float]], attack: str, setting: str
) -> tuple[float, float] | None:
    found = [value for place, value in means.items() if place[:2] == (attack, setting)]
    return max(found, key=lambda value: value[1]) if found else None
