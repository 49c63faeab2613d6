from .cards import render_card as render_card
from .figures import FAINT as FAINT
from .figures import FORGOTTEN as FORGOTTEN
from .figures import KEPT as KEPT
from .figures import TEXT as TEXT
from .figures import new_figure as new_figure
from .figures import own_style as own_style
from .figures import png_bytes as png_bytes
from .tables import Cell as Cell
from .tables import Table as Table
from .tables import escape_latex as escape_latex
from .tables import escape_markdown as escape_markdown
from .tables import percent as percent
from .tables import short_percent as short_percent
from .tables import shortened_names as shortened_names

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
    "short_percent",
    "shortened_names",
]
