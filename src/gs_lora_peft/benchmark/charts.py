"""The figures of a benchmark: H over requests, and kept accuracy against the recovery gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics import measure_of
from ..reports import FAINT, FORGOTTEN, KEPT, TEXT, new_figure, own_style, png_bytes
from .parts import ORIGINAL, YARDSTICKS, slug
from .tables import time_of

Row = dict[str, Any]

_NAMED_LINES = 6
_COLOURS = (FORGOTTEN, KEPT, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


def draw_figures(rows: Sequence[Row]) -> dict[str, bytes]:
    """Draws the figures of every setting.

    Args:
        rows (`Sequence[dict]`):
            Rows of [`BenchmarkResults`].

    Returns:
        `dict[str, bytes]`: Name of the file → PNG: `h-SETTING.png` if there are several requests, and
        `gap-SETTING.png` if there was an audit.
    """
    figures = {}
    with own_style():
        for setting in dict.fromkeys(row["setting"] for row in rows):
            own = [row for row in rows if row["setting"] == setting]
            methods = _means(own)
            if any(row["tasks"] > 1 and row.get("h_mean") is not None for row in own):
                figures[slug("h", setting) + ".png"] = png_bytes(_h_over_tasks(setting, methods))
            if any(row.get("recovery_gap") is not None for row in own):
                drawn = _accuracy_and_gap(setting, methods, measure_of(*own))
                figures[slug("gap", setting) + ".png"] = png_bytes(drawn)
    return figures


def _means(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the means over seeds of every method, a row for each request."""
    time = time_of(rows)
    names = ("h_mean", "recovery_gap", time, "acc_retain", "ap_retain")
    found: dict[str, list[Row]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for task in sorted({row["task"] for row in own}):
            of_task = [row for row in own if row["task"] == task]
            values = {name: [row[name] for row in of_task if row.get(name) is not None] for name in names}
            means: Row = {name: float(np.mean(listed)) for name, listed in values.items() if listed}
            found.setdefault(method, []).append({"task": task, "time": means.get(time, 0.0), **means})
    return found


def _h_over_tasks(setting: str, methods: dict[str, list[Row]]) -> Any:
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    lines = {
        name: ([row["task"] for row in known], [100 * row["h_mean"] for row in known])
        for name, own in methods.items()
        if name not in YARDSTICKS and (known := [row for row in own if "h_mean" in row])
    }
    # The best ones have names; the others show what is usual.
    named = sorted(lines, key=lambda name: -lines[name][1][-1])[:_NAMED_LINES]
    for name, (tasks, values) in lines.items():
        if name not in named:
            axes.plot(tasks, values, color=FAINT, linewidth=0.8, alpha=0.5)
    for number, name in enumerate(named):
        axes.plot(*lines[name], color=_COLOURS[number], marker=_MARKS[number], linewidth=1.8, label=name)
    axes.set(xlabel="request", ylabel="H in percent")
    axes.set_xticks(sorted({task for tasks, _ in lines.values() for task in tasks}))
    axes.set_title(f"{setting}: H after each request")
    axes.grid(axis="y")
    if named:
        figure.legend(loc="outside right upper")
    return figure


def _accuracy_and_gap(setting: str, methods: dict[str, list[Row]], measure: Any) -> Any:
    figure = new_figure(7.6, 5.0)
    axes = figure.subplots()
    key = measure.key("retain")
    last = {name: own[-1] for name, own in methods.items() if "recovery_gap" in own[-1] and key in own[-1]}
    times = {name: float(np.mean([row["time"] for row in own])) for name, own in methods.items()}
    longest = max((times[name] for name in last), default=0.0) or 1.0
    for name, row in last.items():
        yardstick = name in YARDSTICKS
        colour = FAINT if name == ORIGINAL else KEPT if yardstick else FORGOTTEN
        size = 60 if yardstick else 20 + 280 * times[name] / longest
        place = row["recovery_gap"], 100 * row[key]
        axes.scatter(*place, s=size, color=colour, alpha=0.55, marker="X" if yardstick else "o", edgecolors="white")
        axes.annotate(name, place, xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=TEXT)
    axes.set(xlabel="recovery gap in points (0: like retrained)", ylabel=f"{measure.symbol_of('retain')} in percent")
    axes.set_title(f"{setting}: what is kept, and what can be recovered; size: time")
    axes.grid()
    return figure
