"""Pictures of a run: the groups that each task changes, scores after each task, and training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..io import StrPath, as_path, write_bytes_atomic
from ..ledger import KNOWN_BY, ForgettingLedger, TaskEntry, metric_of, score
from ..reports import FAINT, FORGOTTEN, KEPT, TEXT, new_figure, own_style, png_bytes, shortened_names

FIGURES_FOLDER = "figures"

EARLIER, ZERO = "#009E73", "#E4E4E4"


def draw_figures(ledger: ForgettingLedger, out: StrPath) -> list[str]:
    """Draws a run from its ledger.

    - `group_norms.png` shows the norm ‖g‖ of every group in every task as a heat map and marks groups that are exactly
      zero.
    - `accuracies.png` shows the accuracy (or the average precision of a detector) on the kept, the forgotten and the
      earlier forgotten classes, before and after each task.
    - `training_curves.png` shows losses, accuracies (or confidences of a detector) and active groups during training.

    A picture without recorded numbers is not drawn. Tasks appear by number, revoked ones with a star; classes are
    never named. The same ledger gives the same bytes with the same version of matplotlib, in any style of the caller.

    Args:
        ledger ([`ForgettingLedger`]):
            The run.
        out (`str` or `os.PathLike`):
            A folder. The pictures are written to `figures/` in it.

    Returns:
        `list[str]`: Paths of the pictures relative to `out`, with `/`, sorted.

    Raises:
        OSError: If a file cannot be written.
    """
    drawings: dict[str, Callable[[Sequence[TaskEntry]], Figure | None]] = {
        "accuracies.png": _accuracies,
        "group_norms.png": _group_norms,
        "training_curves.png": _training_curves,
    }
    out, drawn = as_path(out, "out"), []
    with own_style():
        for name, draw in drawings.items():
            figure = draw(ledger.tasks)
            if figure is not None:
                (out / FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
                write_bytes_atomic(out / FIGURES_FOLDER / name, png_bytes(figure))
                drawn.append(f"{FIGURES_FOLDER}/{name}")
    return drawn


# Group norms


def _group_norms(entries: Sequence[TaskEntry]) -> Figure | None:
    # Of weights that trained, each of perhaps hundreds of tensors is a group.
    recorded = [{} if entry.leaves_weights else entry.groups.get("norms", {}) for entry in entries]
    names = list(dict.fromkeys(name for norms in recorded for name in norms))
    if not names:
        return None
    norms = np.array([[of_task.get(name, np.nan) for of_task in recorded] for name in names])
    rows, columns = norms.shape
    prefix, labels = shortened_names(names)
    cell_width, cell_height = np.clip(8.0 / columns, 0.08, 0.75), np.clip(7.5 / rows, 0.11, 0.42)
    width = max(columns * cell_width + 0.08 * max(map(len, labels)) + 1.8, 5.0)
    figure = new_figure(width, rows * cell_height + 1.5)
    axes = figure.add_subplot()
    _draw_cells(figure, axes, norms, float(min(cell_width, cell_height)))
    if cell_width >= 0.5 and cell_height >= 0.25:
        _write_norms(axes, norms)
    step = _step(rows, most=rows if cell_height >= 0.16 else rows // 2)
    axes.set_yticks(range(0, rows, step), labels[::step], fontsize=9)
    axes.set(ylabel=prefix, title="How much each task changes each group")
    _number_tasks(axes, entries, most=int(columns * cell_width / 0.3))
    return figure


def _draw_cells(figure: Figure, axes: Axes, norms: np.ndarray, cell: float) -> None:
    """Colours each cell by its norm and marks zeros. `cell` is the shorter side of a cell in inches."""
    options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    axes.imshow(np.where(norms == 0, 1.0, np.nan), cmap=ListedColormap([ZERO]), **options)
    image = axes.imshow(np.where(norms > 0, norms, np.nan), cmap=_more_is_darker(), **options)
    image.set_clim(0, np.nanmax(norms) or 1.0)
    bar = figure.colorbar(image, ax=axes, label="norm of the group's LoRA matrices", pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    zeros = np.argwhere(norms == 0)
    mark = 72 * cell * 0.36
    axes.scatter(zeros[:, 1], zeros[:, 0], marker="x", s=mark**2, color=FAINT, linewidths=min(1.2, mark / 4))
    axes.set_xticks(np.arange(norms.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(norms.shape[0] + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=min(1.5, 20 * cell**2))
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    handles: list[Any] = []
    if zeros.size:
        label = "exactly zero: the task leaves the group as it was"
        handles.append(Line2D([], [], marker="x", color=FAINT, linestyle="", label=label))
    if np.isnan(norms).any():
        handles.append(Patch(facecolor="white", edgecolor=FAINT, label="not adapted, or not recorded"))
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=2)


def _more_is_darker() -> ListedColormap:
    """Returns Viridis, which suits all kinds of colour vision, without the light end, which resembles the zeros."""
    return ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1, 256)))


def _write_norms(axes: Axes, norms: np.ndarray) -> None:
    colours, largest = _more_is_darker(), np.nanmax(norms)
    for row, column in np.argwhere(norms > 0):
        value = norms[row, column]
        luminance = np.dot(np.power(colours(value / largest)[:3], 2.2), (0.2126, 0.7152, 0.0722))
        colour = "white" if luminance < 0.18 else "black"  # at 0.18 both have the same contrast
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=colour, fontsize=9)


# Accuracies


def _accuracies(entries: Sequence[TaskEntry]) -> Figure | None:
    measure = metric_of(*entries)
    base, kept = _scores(entries, "base", "retain"), _scores(entries, "after", "retain")
    before, after = _scores(entries, "before", "forget"), _scores(entries, "after", "forget")
    earlier = _scores(entries, "after", "old")
    if np.isnan([base, kept, before, after, earlier]).all():
        return None
    count = len(entries)
    figure = new_figure(float(np.clip(3.5 + 0.6 * count, 5.5, 11)), 4.2)
    axes = figure.add_subplot()
    places, aside = np.arange(count), 0.1 if count <= 20 else 0.0
    size = float(np.clip(90 / count, 3.5, 7))
    axes.vlines(places, before, after, color=FORGOTTEN, alpha=0.35, linewidth=min(size / 3, 2))
    axes.hlines(
        base, places - 0.5, places + 0.5, color=FAINT, linestyles=(0, (4, 2)), label="kept classes, base model"
    )

    def plot(x: np.ndarray, values: np.ndarray, label: str, **style: Any) -> None:
        if not np.isnan(values).all():
            axes.plot(x, values, label=label, **{"linestyle": "", "marker": "o", "markersize": size, **style})

    plot(places - aside, kept, "kept classes, after", color=KEPT, marker="s", linestyle="-")
    missing = _scores(entries, "after", "missing")
    plot(places + aside, missing, "kept classes without data, after", color=KEPT, marker="D", markerfacecolor="none")
    plot(places, before, "this task's classes, before", color=FORGOTTEN, markerfacecolor="white")
    plot(places, after, "this task's classes, after", color=FORGOTTEN)
    # Hollow and larger, so that a point under it stays visible.
    shape: dict[str, Any] = {"marker": "^", "markerfacecolor": "none", "markersize": min(1.5 * size, 8)}
    plot(places + aside, earlier, "classes of earlier tasks, after", color=EARLIER, **shape)
    axes.grid(True, axis="y")
    axes.set(ylim=(-4, 104), xlim=(-0.6, count - 0.4), ylabel=f"{measure.title} (%)")
    axes.set_title(f"{measure.title.capitalize()} before and after each task")
    _number_tasks(axes, entries, most=25)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def _scores(entries: Sequence[TaskEntry], when: str, role: str) -> np.ndarray:
    """Returns a score of each task in percent; NaN if there is none."""
    values = [score(entry, when, role) for entry in entries]
    return 100 * np.array([np.nan if value is None else value for value in values])


# Training curves


def _training_curves(entries: Sequence[TaskEntry]) -> Figure | None:
    if not any(entry.curves for entry in entries):
        return None
    found = {name for entry in entries for name in entry.curves or ()}
    known_by = next(name for name in KNOWN_BY if f"retain_{name}" in found)
    count, heights = len(entries), (3, 3, 2) if "active_groups" in found else (3, 3)  # only adapters have groups
    figure = new_figure(float(np.clip(4 + 1.2 * count, 6, 11)), 6.5 if "active_groups" in found else 5.0)
    losses, accuracies, *groups = panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    width = 1.6 if count <= 20 else 1.0
    keep: dict[str, Any] = {"color": KEPT, "linewidth": width}
    forget: dict[str, Any] = {"color": FORGOTTEN, "linewidth": width, "linestyle": (0, (3, 1)) if count <= 20 else "-"}
    for place, entry in enumerate(entries):
        curves = {name: np.array(values) for name, values in (entry.curves or {}).items()}
        if not curves:
            continue
        at = place + 0.04 + 0.92 * curves["epoch"] / (curves["epoch"].max() or 1)
        point = {"marker": "o" if len(at) == 1 else ""}
        losses.plot(at, curves["retain_loss"], **keep, **point)
        losses.plot(at, curves["forget_loss"], **forget, **point)
        accuracies.plot(at, 100 * curves[f"retain_{known_by}"], **keep, **point)
        accuracies.plot(at, 100 * curves[f"forget_{known_by}"], **forget, **point)
        if "active_groups" in curves:
            style = {"color": TEXT, "linewidth": width, "drawstyle": "steps-post", **point}
            groups[0].plot(at, curves["active_groups"], **style)
    _log_axis(losses, entries)
    losses.set(ylabel="loss (nats, log scale)", title="Training of each task, from its first epoch to its last")
    accuracies.set(ylabel=f"{known_by} (%)", ylim=(-4, 104))
    for axes in groups:
        axes.set(ylabel="active groups", ylim=(0, 1.05 * max(axes.get_ylim()[1], 1.0)))
        axes.yaxis.get_major_locator().set_params(integer=True)
    panels[-1].set(xlim=(0, count))
    for axes in panels:
        axes.grid(True, axis="y")
        axes.tick_params(axis="x", length=0)
        if count <= 40:
            axes.vlines(range(1, count), 0, 1, transform=axes.get_xaxis_transform(), color="#BBBBBB", linewidth=0.8)
    _number_tasks(panels[-1], entries, most=25, at=0.5)
    handles = [Line2D([], [], label="samples to keep", **keep), Line2D([], [], label="samples to forget", **forget)]
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


# Shared parts


def _log_axis(axes: Axes, entries: Sequence[TaskEntry]) -> None:
    """Sets a log axis with a few round ticks. A loss may be exactly 0.

    The axis is linear below the decade of the smallest positive loss. Thus curves within one decade fill the panel,
    and ticks do not crowd at its lower end.
    """
    curves = [entry.curves[name] for entry in entries if entry.curves for name in ("retain_loss", "forget_loss")]
    values = np.array([value for curve in curves for value in curve])
    positive = values[values > 0]
    if not positive.size:
        axes.set_ylim(0, 1)
        return
    lowest = max(float(np.floor(np.log10(positive.min()))), -4.0)
    highest = float(np.log10(positive.max()))
    has_zeros = bool((values < 10**lowest).any())
    axes.set_yscale("symlog", linthresh=10**lowest, linscale=0.5)
    # For few decades 1, 2 and 5 in each of them, otherwise 1.
    steps = (1, 2, 5) if highest - lowest <= 2 else (1, 3) if highest - lowest <= 3 else (1,)
    decades = range(int(lowest), int(np.ceil(highest)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axes.set_ylim(-0.05 * 10**lowest if has_zeros else 0.9 * positive.min(), 1.15 * positive.max())
    shown = [tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks([*([0.0] if has_zeros else []), *shown])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _number_tasks(axes: Axes, entries: Sequence[TaskEntry], *, most: int, at: float = 0.0) -> None:
    """Labels at most `most` tasks along the x axis by their number."""
    step = _step(len(entries), most)
    shown = [(place, entry) for place, entry in enumerate(entries) if entry.number % step == 0]
    labels = [f"{entry.number}{'*' if entry.status == 'revoked' else ''}" for _, entry in shown]
    axes.set_xticks([place + at for place, _ in shown], labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("task (* revoked)" if any(entry.status == "revoked" for entry in entries) else "task")


def _step(count: int, most: int) -> int:
    """Returns the smallest round step that labels at most `most` of `count`."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count <= step * most), 1000)
