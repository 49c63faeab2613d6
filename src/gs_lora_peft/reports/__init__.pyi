from .cards import (
    render_card as render_card,
    render_dataset_card as render_dataset_card,
    render_html as render_html,
    render_markdown as render_markdown,
)
from .figures import (
    FAINT as FAINT,
    FORGOTTEN as FORGOTTEN,
    KEPT as KEPT,
    TEXT as TEXT,
    new_figure as new_figure,
    own_style as own_style,
    png_bytes as png_bytes,
)
from .tables import (
    Cell as Cell,
    Table as Table,
    escape_latex as escape_latex,
    escape_markdown as escape_markdown,
    percent as percent,
    short_percent as short_percent,
    shortened_names as shortened_names,
)

__all__ = [
    "FAINT",
    "FORGOTTEN",
    "KEPT",
    "TEXT",
    "Cell",
    "Table",
    "escape_latex",
    "escape_markdown",
    "new_figure",
    "own_style",
    "percent",
    "png_bytes",
    "render_card",
    "render_dataset_card",
    "render_html",
    "render_markdown",
    "short_percent",
    "shortened_names",
]
