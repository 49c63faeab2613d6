"""What people read: tables that are rendered in several formats, cards from templates, and the style of pictures."""

from .cards import render_card
from .labels import shortened_names
from .tables import Cell, Table, escape_latex, escape_markdown, percent, short_percent

__all__ = [
    "Cell",
    "Table",
    "escape_latex",
    "escape_markdown",
    "percent",
    "render_card",
    "short_percent",
    "shortened_names",
]
