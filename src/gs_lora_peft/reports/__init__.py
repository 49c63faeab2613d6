"""What people read: tables that are rendered in several formats, cards from templates, and the style of pictures."""

from .cards import render_card
from .figures import FAINT, FORGOTTEN, KEPT, TEXT, new_figure, own_style, png_bytes
from .labels import shortened_names
from .tables import Cell, Table, escape_latex, escape_markdown, percent, short_percent

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
