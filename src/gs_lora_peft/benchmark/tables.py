"""The tables of a benchmark, in the papers' layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ledger import TOLERANCE
from ..metrics import measure_of
from ..reports import Table
from .parts import ORIGINAL, RETRAINED, YARDSTICKS
from .search import CHOSEN, RECOVERED

Row = dict[str, Any]

_NOT_RUN = "–"
_GAP = "recovery_gap"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title (`str`):
            Its title, with an arrow to where the best value is.
        name (`str`):
            Name of the value in the rows.
        scale (`float`, *optional*, defaults to 1):
            What the value is multiplied by.
        digits (`int`, *optional*, defaults to 1):
            Digits behind the point.
    """

    title: str
    name: str
    scale: float = 1
    digits: int = 1

    @property
    def largest(self) -> bool:
        """Whether the largest value is the best one."""
        return self.title.endswith("↑")

    def values(self, rows: Sequence[Row]) -> list[float]:
        """Returns the scaled values of the rows that have one."""
        return [self.scale * row[self.name] for row in rows if row.get(self.name) is not None]

    def shown(self, values: Sequence[float]) -> str:
        """Returns mean ± standard deviation (of a sample), or a dash."""
        if not values:
            return _NOT_RUN
        mean = f"{np.mean(values):.{self.digits}f}"
        return f"{mean} ± {np.std(values, ddof=1):.{self.digits}f}" if len(values) > 1 else mean


def time_of(rows: Sequence[Row]) -> str:
    """Returns the name of the time that compares methods: of the process, unless an accelerator does the work."""
    return "seconds" if any(row.get("device", "cpu") != "cpu" for row in rows) else "cpu_seconds"


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of the main table."""
    measure = measure_of(*rows)
    roles = (("retain", "↑"), ("forget", "↓"), ("old", "↓"), ("missing", "↑"))
    return [
        *(Column(f"{measure.symbol_of(role)} {arrow}", measure.key(role), 100) for role, arrow in roles),
        Column("H ↑", "h_mean", 100),
        Column("recovery gap ↓", _GAP),
        Column("membership ↓", "membership_distance"),
        Column("ToW ↑", "tow", 100),
        Column("KL_f ↓", "kl_forget", digits=2),
        Column("KL_r ↓", "kl_retain", digits=2),
        Column("s ↓", time_of(rows)),
        Column("kB ↓", "stored_bytes", 1e-3, 0),
        Column("trainable, k ↓", "trainable", 1e-3, 1),
    ]


def main_table(setting: str, final: Sequence[Row], rows: Sequence[Row]) -> Table:
    """Returns the table of a setting, see [`BenchmarkResults.table`].

    Args:
        setting (`str`):
            Name of the setting.
        final (`Sequence[dict]`):
            The last row of each run.
        rows (`Sequence[dict]`):
            All rows. Time, bytes and what trains are means over all requests of a run.
    """
    columns = [column for column in columns_of(rows) if column.values(rows)]
    runs = {name: [row for row in final if row["method"] == name] for name in _names(final)}
    of_all = {name: [row for row in rows if row["method"] == name] for name in runs}

    def values(name: str, column: Column) -> list[float]:
        if column.name in ("seconds", "cpu_seconds", "stored_bytes", "trainable"):
            seeds = dict.fromkeys(row["seed"] for row in of_all[name])
            each = [column.values([row for row in of_all[name] if row["seed"] == seed]) for seed in seeds]
            return [float(np.mean(found)) for found in each if found]
        return column.values(runs[name])

    ranked = {name for name, own in runs.items() if all(row["outcome"] == "forgotten" for row in own)}
    gap = Column("", _GAP)

    def order(name: str) -> tuple[bool, bool, float]:
        found = gap.values(runs[name])
        return name not in YARDSTICKS, name not in ranked, float(np.mean(found)) if found else np.inf

    names = sorted(runs, key=order)
    cells = [[name, *(c.shown(values(name, c)) for c in columns), _outcomes(runs[name])] for name in names]
    best, second = _marks(columns, names, ranked, values)
    seeds = len({row["seed"] for row in final if row["method"] not in YARDSTICKS})
    return Table(
        ["method", *(column.title for column in columns), "forgotten"],
        cells,
        align="l" + "r" * (len(columns) + 1),
        caption=f"{setting}: mean ± standard deviation over {seeds} seed{'s' * (seeds != 1)}, after the last request",
        notes=_notes(columns, runs),
        best=best,
        second=second,
    )


def _notes(columns: Sequence[Column], runs: dict[str, list[Row]]) -> list[str]:
    shown = {column.name for column in columns}
    said = ["Best bold, second underlined, among methods that forgot in every run."]
    if _GAP in shown:
        noise = [row["reference_gap"] for own in runs.values() for row in own if row.get("reference_gap") is not None]
        beside = f" The references differ by up to {max(noise):.1f} among themselves." if noise else ""
        said.append(
            "The recovery gap decides: by how many points the strongest attack recovers more than from models that "
            f"were retrained without the classes; lines are in its order.{beside}"
        )
    said += _weak_references(columns, runs)
    return [
        *said,
        "s, kB and trainable: of one request; the time with scoring, the adapter or the change of the weights that is "
        "kept, and thousands of numbers that train.",
    ]


def _weak_references(columns: Sequence[Column], runs: dict[str, list[Row]]) -> list[str]:
    """Returns a warning if retrained models know less than half of what the original does; audits warn at the same."""
    name = measure_of(*(row for own in runs.values() for row in own)).key("retain")
    kept = next((column for column in columns if column.name == name), None)
    if kept is None:
        return []
    found = [kept.values(runs.get(method, [])) for method in (RETRAINED, ORIGINAL)]
    if not all(found):
        return []
    right, usual = (float(np.mean(values)) for values in found)
    if right >= 0.5 * usual:
        return []
    return [
        f"The retrained models are no fair yardstick: {kept.title[:-2]} {right:.1f}, the original {usual:.1f}. Beside "
        "models that know so little, much looks remembered. Raise `epochs` of `audit.recipe`."
    ]


def task_table(setting: str, rows: Sequence[Row]) -> Table:
    """Returns a line for each method, and H, Acc_r, Acc_f and Acc_o for each request."""
    measure, tasks = measure_of(*rows), sorted({row["task"] for row in rows})
    kinds = [("H", "h_mean", "↑"), *((measure.symbol_of(r), measure.key(r), to) for r, to in _ROLES.items())]
    of_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
    columns = [
        (task, column)
        for task in tasks
        for title, name, to in kinds
        if (column := Column(f"{title}, {task} {to}", name, 100)).values(of_task[task])
    ]
    runs = {name: [r for r in rows if r["method"] == name] for name in _names(rows) if name not in YARDSTICKS}

    def values(name: str, column: Column) -> list[float]:
        task = next(task for task, own in columns if own is column)
        return column.values([row for row in runs[name] if row["task"] == task])

    ranked = {name for name, own in runs.items() if all(row["outcome"] == "forgotten" for row in own)}
    cells = [[name, *(column.shown(values(name, column)) for _, column in columns)] for name in runs]
    best, second = _marks([column for _, column in columns], list(runs), ranked, values)
    caption = f"{setting}, request by request: mean ± standard deviation"
    titles = ["method", *(column.title for _, column in columns)]
    return Table(titles, cells, "l" + "r" * len(columns), caption, best=best, second=second)


_ROLES = {"retain": "↑", "forget": "↓", "old": "↓"}


def search_table(trials: Sequence[Row]) -> Table:
    """Returns what the search chose for each method and setting."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for trial in trials:
        groups.setdefault((trial["method"], trial["setting"]), []).append(trial)
    cells = []
    for (method, setting), own in groups.items():
        best = next(trial for trial in own if trial[CHOSEN])
        options = json.loads(best["options"])
        found = {**options.get("training", {}), **options.get("hyper_parameters", {})}
        shown = ((name, f"{value:g}" if isinstance(value, float) else value) for name, value in found.items())
        text = ", ".join(f"{name} {value}" for name, value in shown)
        points = best.get(RECOVERED)
        share = None if points is None else points / 100
        cells.append([method, setting, len(own), best.get("h_mean"), share, text or "as published"])
    return Table(["method", "setting", "trials", "H there", "recovered there", "chosen"], cells, "llrrrl")


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _outcomes(rows: Sequence[Row]) -> str:
    """In how many runs everything was forgotten, and what became of the others that failed."""
    counts = Counter(row["outcome"] for row in rows)
    if set(counts) == {"yardstick"}:
        return _NOT_RUN
    failed = [
        f"{count} {outcome}" for outcome, count in counts.items() if outcome not in ("forgotten", "not forgotten")
    ]
    return "; ".join([f"{counts['forgotten']} of {len(rows)}", *failed])


def _marks(
    columns: Sequence[Column], names: Sequence[str], ranked: set[str], values: Callable[[str, Any], list[float]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Places of the best and the second values. Values that are shown alike share a place."""
    best, second = [], []
    for place, column in enumerate(columns, start=1):
        means = {
            row: round(float(np.mean(found)), column.digits)
            for row, name in enumerate(names)
            if name in ranked and (found := values(name, column))
        }
        order = sorted(set(means.values()), reverse=column.largest)
        best += [(row, place) for row, mean in means.items() if mean == order[0]]
        second += [(row, place) for row, mean in means.items() if len(order) > 1 and mean == order[1]]
    return best, second


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
