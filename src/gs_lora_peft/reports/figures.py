"""The common style of all figures. matplotlib is imported only when a figure is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DOTS_PER_INCH = 150

# Okabe-Ito colours, which people with any colour vision can tell apart. Shapes and fillings differ as well.
KEPT = "#0072B2"
FORGOTTEN = "#D55E00"

TEXT = "#222222"
FAINT = "#808080"

# White instead of transparent: only a few greys can be read both on white and on black pages.
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def own_style() -> Iterator[None]:
    """Sets the style of the package for the time of the block, whatever style the caller has set."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure without a window. Width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(float(width), float(height)), dpi=DOTS_PER_INCH, layout="constrained")


def png_bytes(figure: Any) -> bytes:
    """Returns a figure as a PNG without metadata."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
