"""What the Hub objects to in the metadata of a card."""

from __future__ import annotations

import re
from typing import Any

import yaml


def metadata_problems(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a `README.md`: those of the real checks that concern the fields of a model's card."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|\Z)", card, re.DOTALL)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[1]) or {}
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be an object"], []
    return [*_fields(data), *_model_index(data.get("model-index", []))], []


def _fields(data: dict[str, Any]) -> list[str]:
    errors = [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
        for base in _as_list(data.get("base_model"))
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base))
    ]
    for key in ("license", "pipeline_tag", "library_name", "base_model_relation"):
        if key in data and not (isinstance(data[key], str) and re.fullmatch(r"[\w.-]+", data[key])):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "language"):
        if not all(isinstance(item, str) for item in _as_list(data.get(key))):
            errors.append(f'"{key}" must be an array of strings')
    return errors


def _model_index(models: Any) -> list[str]:
    if not isinstance(models, list):
        return ['"model-index" must be an array']
    errors = [f'"model-index[{i}].name" is required' for i, model in enumerate(models) if not model.get("name")]
    for i, model in enumerate(models):
        for j, result in enumerate(model.get("results") or [{}]):
            place = f"model-index[{i}].results[{j}]"
            for part, key in (("task", "type"), ("dataset", "name"), ("dataset", "type")):
                if not result.get(part, {}).get(key):
                    errors.append(f'"{place}.{part}.{key}" is required')
            metrics = result.get("metrics")
            if not metrics or any(not m.get("type") or m.get("value") is None for m in metrics):
                errors.append(f'"{place}.metrics" must have a type and a value each')
    return errors


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
