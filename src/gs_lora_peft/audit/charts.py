"""The figures of an audit: the worst of each attack, layer × attack, and curves. They name no class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reports import FAINT, FORGOTTEN, KEPT, TEXT, new_figure, own_style, png_bytes
from .base import Measurement
from .results import AuditResults, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTACKS_FIGURE, LAYERS_FIGURE, CURVES_FIGURE = "attacks.png", "layers.png", "curves.png"
FIGURES = (ATTACKS_FIGURE, LAYERS_FIGURE, CURVES_FIGURE)

_CLIPPED = 50  # points at which the colours of the heat map end
_MAX_CURVES = 6
_CURVE_COLUMNS = 3


def worst_of_each(results: AuditResults) -> list[Comparison]:
    """Returns the comparison with the largest excess of each attack that is judged, in the order of the attacks."""
    worst: dict[str, Comparison] = {}
    for found in results.comparisons():
        known = worst.get(found.attack.name)
        if found.attack.judged != "shown" and (known is None or found.excess > known.excess):
            worst[found.attack.name] = found
    return list(worst.values())


def draw_figures(results: AuditResults) -> dict[str, bytes]:
    """Draws the figures of an audit.

    Args:
        results ([`AuditResults`]):
            The audit.

    Returns:
        `dict[str, bytes]`: Name of the file → PNG. A figure without anything to show is left out: `layers.png` without
        attacks on blocks, `curves.png` without attacks that train.
    """
    worst = worst_of_each(results)
    at_places = [found for found in results.comparisons() if found.where and found.attack.judged != "shown"]
    curves = _curves(results)
    figures = {}
    with own_style():
        if worst:
            figures[ATTACKS_FIGURE] = png_bytes(_bars(worst))
        if at_places:
            figures[LAYERS_FIGURE] = png_bytes(_layers(at_places))
        if curves:
            figures[CURVES_FIGURE] = png_bytes(_curve_panels(results, curves))
    return figures


# The worst of each attack


def _bars(worst: Sequence[Comparison]) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = new_figure(8.6, 0.62 * len(worst) + 1.5)
    axes = figure.subplots()
    for place, found in enumerate(worst):
        of_reference = _mean_of(found.references)
        for offset, measured, colour in ((-0.19, found.forgotten, FORGOTTEN), (0.19, of_reference, KEPT)):
            axes.barh(place + offset, measured.value, height=0.36, color=colour)
            ends = [[max(0.0, measured.value - measured.low)], [max(0.0, measured.high - measured.value)]]
            axes.errorbar(measured.value, place + offset, xerr=ends, color=TEXT, linewidth=1, capsize=2.5)
        axes.plot([found.original.value] * 2, [place - 0.4, place + 0.4], color=FAINT, linewidth=1.5, linestyle=":")
    axes.set_yticks(range(len(worst)), [_two_lines(found) for found in worst], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, max(101.0, *(found.forgotten.high for found in worst)))
    axes.set(xlabel="recovered, in points, with 95 % intervals")
    axes.set_title("The worst setting of each attack")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    handles = [
        Patch(color=FORGOTTEN, label="forgotten"),
        Patch(color=KEPT, label="reference"),
        Line2D([], [], color=FAINT, linewidth=1.5, linestyle=":", label="original"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


def _mean_of(measurements: Sequence[Measurement]) -> Measurement:
    """Returns the mean of figures of one setting, each with its interval."""
    low, value, high = np.mean([(found.low, found.value, found.high) for found in measurements], axis=0)
    return Measurement(measurements[0].setting, float(value), float(low), float(high))


def _two_lines(found: Comparison) -> str:
    return f"{found.attack.title}\n{', '.join(filter(None, (found.setting, found.where)))}"


# Layer × attack


def _layers(comparisons: Sequence[Comparison]) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    rows = list(dict.fromkeys(f"{found.attack.title}, {found.setting}" for found in comparisons))
    columns = list(dict.fromkeys(found.where for found in comparisons))
    excess = np.full((len(rows), len(columns)), np.nan)
    for found in comparisons:
        excess[rows.index(f"{found.attack.title}, {found.setting}"), columns.index(found.where)] = found.excess
    colours = LinearSegmentedColormap.from_list("excess", [KEPT, "white", FORGOTTEN]).with_extremes(bad="#F4F4F4")
    figure = new_figure(max(6.5, 0.46 * len(columns) + 4.2), 0.34 * len(rows) + 2.1)
    axes = figure.subplots()
    image = axes.imshow(excess, cmap=colours, norm=Normalize(-_CLIPPED, _CLIPPED), aspect="auto")
    for (row, column), value in np.ndenumerate(excess):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.85 * _CLIPPED else TEXT
            axes.text(
                column, row, f"{value:.0f}".replace("-0", "0"), ha="center", va="center", fontsize=8, color=colour
            )
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.set_title("Points above the reference, by place")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, extend="both", label="points", shrink=0.8, aspect=12)
    return figure


# Curves

_Key = tuple[int, str]  # position of the attack, and key of the measurement


def _curves(results: AuditResults) -> dict[_Key, dict[str, list[float]]]:
    """Returns the curves of each setting by name of the model; the settings with the largest excess first."""
    excess = {
        (results.attacks.index(found.attack), found.forgotten.key): found.excess for found in results.comparisons()
    }
    curves: dict[_Key, dict[str, list[float]]] = {}
    for place, attack in enumerate(results.attacks):
        for name, measurements in attack.measurements.items():
            for found in measurements:
                if found.curve:
                    curves.setdefault((place, found.key), {})[name] = found.curve
    chosen = sorted(curves, key=lambda key: -excess.get(key, 0.0))[:_MAX_CURVES]
    return {key: curves[key] for key in sorted(chosen)}


def _curve_panels(results: AuditResults, curves: dict[_Key, dict[str, list[float]]]) -> Figure:
    columns = min(_CURVE_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(3.4 * columns + 0.4, 2.6 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    handles: dict[str, Any] = {}
    for axes, (place, key) in zip(panels, curves, strict=False):
        attack = results.attacks[place]
        _draw_curves(axes, results, curves[place, key], attack.settings.get("every", 1), handles)
        axes.set_title(f"{attack.title}\n{key}", fontsize=9)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("recovered, in points")
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=len(handles))
    return figure


def _draw_curves(
    axes: Axes, results: AuditResults, curves: dict[str, list[float]], every: int, handles: dict[str, Any]
) -> None:
    styles: dict[str, dict[str, Any]] = {
        "original": {"color": FAINT, "linestyle": ":", "linewidth": 1.5},
        "forgotten": {"color": FORGOTTEN, "linewidth": 2},
        "retrained": {"color": KEPT, "linewidth": 1.2, "alpha": 0.8},
        "random": {"color": KEPT, "linewidth": 1.2, "linestyle": "--"},
    }
    names = {"original": "original", "forgotten": "forgotten", "retrained": "retrained", "random": "random weights"}
    for model in results.models:
        if model.name in curves:
            curve = curves[model.name]
            steps = [every * number for number in range(len(curve))]
            (line,) = axes.plot(steps, curve, **styles[model.kind])
            handles.setdefault(names[model.kind], line)
    axes.set(ylim=(-2, 102), xlabel="step")
    axes.grid(axis="y")
