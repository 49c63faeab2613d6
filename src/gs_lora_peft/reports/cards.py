"""Renders cards and other pages from the templates of this folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ..io import code_span, visible
from .tables import Table, escape_markdown, percent, short_percent

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
    from jinja2 import Environment


def render_markdown(template: str, **values: Any) -> str:
    """Renders a page in Markdown.

    Everything that a template prints is escaped for Markdown. Exceptions are a [`Table`], which escapes its own cells,
    and the results of three filters: `code` returns an inline code span, `python` a string in Python code, and
    `identifier` the name of a class in Python code (`BaseModel` if it is not an identifier). The filters `percent` and
    `short_percent` format rates.

    Args:
        template (`str`):
            Name of the template, without its suffixes: `"run"`, `"merged_model"`, `"adapter"`, `"audit"` or
            `"benchmark"`.
        values (`Any`, *optional*):
            Values that the template prints.

    Returns:
        `str`: The page, with one line break at its end.

    Raises:
        jinja2.UndefinedError: If the template prints a value that is missing.
    """
    return _environment().get_template(f"{template}.md.jinja").render(values).strip() + "\n"


def render_card(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    """Renders a card: [`render_markdown`] below metadata.

    Args:
        template (`str`):
            As in [`render_markdown`].
        data (`huggingface_hub.ModelCardData`):
            The metadata at the top of the card.
        values (`Any`, *optional*):
            As in [`render_markdown`].

    Returns:
        `huggingface_hub.ModelCard`: The card.

    Raises:
        jinja2.UndefinedError: If the template prints a value that is missing.
    """
    from huggingface_hub import ModelCard  # takes half a second to import, too long for a command line

    return ModelCard(_with_metadata(template, data, values))


def render_dataset_card(template: str, data: DatasetCardData, **values: Any) -> DatasetCard:
    """Renders the card of a data set, as [`render_card`] that of a model."""
    from huggingface_hub import DatasetCard

    return DatasetCard(_with_metadata(template, data, values))


def _with_metadata(template: str, data: ModelCardData | DatasetCardData, values: Mapping[str, Any]) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n{render_markdown(template, **values)}"


def render_html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """Renders a page of [`render_markdown`] as one HTML file that needs no other file.

    Args:
        markdown (`str`):
            The page. Its first heading becomes the title.
        pictures (`Mapping[str, bytes]`):
            The PNG of each picture of the page, by its path there.

    Returns:
        `str`: The HTML.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": True}).enable("table")  # the templates write <details>; values cannot
    tokens = reader.parse(markdown)
    for picture in (child for token in tokens for child in token.children or () if child.type == "image"):
        encoded = base64.b64encode(pictures[str(picture.attrs["src"])]).decode()
        picture.attrs["src"] = f"data:image/png;base64,{encoded}"
    title = next(after.content for token, after in pairwise(tokens) if token.type == "heading_open")
    body = Markup(reader.renderer.render(tokens, reader.options, {}))
    return _environment().get_template("page.html.jinja").render(title=Markup(escape(title)), body=body) + "\n"


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Jinja escapes for HTML everything that is not Markup, so `finalize` must return Markup.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "code": _code,
        "identifier": _identifier,
        "percent": percent,
        "python": _python,
        "short_percent": short_percent,
    }
    return environment


def _safe(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup(value.to_markdown() if isinstance(value, Table) else escape_markdown(value))


def _code(text: str) -> Markup:
    return Markup(code_span(text))


def _python(text: str) -> Markup:
    return Markup(visible(json.dumps(text, ensure_ascii=False)))


def _identifier(name: str) -> Markup:
    return Markup(name if name.isidentifier() else "BaseModel")
