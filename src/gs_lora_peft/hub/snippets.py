"""Code that loads what was published, as the card shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..storage import visible

_UNKNOWN_BASE = "path/to/the/base/model"


def stock_peft(base: Mapping[str, Any], repo: str) -> str:
    """All requests in effect, by PEFT alone."""
    load = f"model = PeftModel.from_pretrained(base_model, {quoted(repo)}).eval()"
    return _code("from peft import PeftModel", base, _untied(base, load))


def stock_transformers(base: Mapping[str, Any], repo: str) -> str:
    """The same by transformers' own `load_adapter`."""
    return _code(None, base, _untied(base, f"base_model.load_adapter({quoted(repo)})"))


def stock_pipeline(pipeline_tag: str, repo: str) -> str:
    """The same as a pipeline."""
    return f"from transformers import pipeline\n\npipe = pipeline({quoted(pipeline_tag)}, {quoted(repo)})"


def this_package(base: Mapping[str, Any], repo: str, *, first: bool) -> str:
    """The first request alone, or all of them, checked against the ledger."""
    tasks = ", tasks=1" if first else ""
    load = f"model = load_forgotten(base_model, {quoted(repo)}{tasks})"
    return _code("from gs_lora_peft import load_forgotten", base, load)


def _untied(base: Mapping[str, Any], load: str) -> str:
    """The same for a detector with tied heads, which PEFT would take for tied word embeddings."""
    if not base.get("tied_heads"):
        return load
    config = "base_model.config.tie_word_embeddings"
    return f"{config} = False  # what is tied are its heads, which PEFT does not know\n{load}\n{config} = True"


def import_line(model_class: str) -> str:
    """How a model class is imported; a comment where nobody here knows it."""
    import transformers

    from .. import models

    for module in (transformers, models):
        if hasattr(module, model_class):
            return f"from {module.__name__} import {model_class}"
    return f"# Import {model_class} from where it is defined."


def _code(first: str | None, base: Mapping[str, Any], last: str) -> str:
    name = base.get("model_class") or ""
    model_class = name if name.isidentifier() else "BaseModel"
    imports = import_line(model_class)
    weights = quoted(base.get("name_or_path") or _UNKNOWN_BASE)
    revision = f", revision={quoted(base['revision'])}" if base.get("revision") else ""
    load = f"base_model = {model_class}.from_pretrained({weights}{revision})"
    return "\n".join([*([first] if first else []), imports, "", load, last])


def quoted(value: str) -> str:
    """A string as Python code, on one line."""
    return visible(json.dumps(value, ensure_ascii=False))
