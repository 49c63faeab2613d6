"""Renders cards of models and adapters from the templates of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..io import code_span, visible
from .tables import Table, escape_markdown, percent, short_percent

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment


def render_card(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    """Renders a card.

    Everything that a template prints is escaped for Markdown. Exceptions are a [`Table`], which escapes its own cells,
    and the results of three filters: `code` returns an inline code span, `python` a string in Python code, and
    `identifier` the name of a class in Python code (`BaseModel` if it is not an identifier). The filters `percent` and
    `short_percent` format rates.

    Args:
        template (`str`):
            Name of the template, without its suffixes: `"run"`, `"merged_model"` or `"adapter"`.
        data (`huggingface_hub.ModelCardData`):
            The metadata at the top of the card.
        values (`Any`, *optional*):
            Values that the template prints.

    Returns:
        `huggingface_hub.ModelCard`: The card.

    Raises:
        jinja2.UndefinedError: If the template prints a value that is missing.
    """
    from huggingface_hub import ModelCard  # takes half a second to import, too long for a command line

    body = _environment().get_template(f"{template}.md.jinja").render(values)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n")


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
