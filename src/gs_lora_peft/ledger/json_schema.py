"""The format of the ledger as a JSON Schema, from the same types that check it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema

from .audits import _Audit
from .entry import _KINDS, _OPTIONAL, TaskEntry, TaskName
from .schema import _BASE_MODEL_KINDS, SCHEMA_VERSION, Names

# pydantic leaves limits behind its own converters as they are.
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_ABOUT = {
    "schema_version": "Version of this format.",
    "digest": "'sha256:' and the SHA-256 of all other keys, as JSON with sorted keys and without spaces. It protects "
    "against accidents, and is not a signature.",
    "base_model": "The model before all requests: the fingerprint of its weights, and where it came from.",
    "label_names": "Names of all classes, in the order of their ids; null if they are withheld or unknown.",
    "tasks": "All requests in order, including the revoked ones.",
    "audit": "The last audit, and the tasks that it covers.",
}


def ledger_json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of `forgetting.json`.

    It describes each value alone. [`ForgettingLedger.load`] also checks what holds between values, such as the digest,
    the order of the tasks and that no class is forgotten twice.

    Returns:
        `dict`: The schema, in plain JSON types.
    """
    names = [item.name for item in dataclasses.fields(TaskEntry) if item.name != "extra"]
    kinds = {"name": TaskName, "started_at": str, "finished_at": str, **_KINDS}
    task = _model("Task", {name: kinds[name] for name in names}, _OPTIONAL, _arguments_of(TaskEntry))
    base = _model("BaseModel", _BASE_MODEL_KINDS, _BASE_MODEL_KINDS.keys() - {"fingerprint"}, {})
    keys: dict[str, Any] = {
        "schema_version": Literal[SCHEMA_VERSION],
        "digest": str,
        "base_model": base,
        "label_names": Names | None,
        "tasks": list[task],  # type: ignore[valid-type]
        "audit": _Audit | None,
    }
    schema = _model("Ledger", keys, {"audit"}, _ABOUT).model_json_schema()
    return {"$schema": GenerateJsonSchema.schema_dialect, **_plain(schema)}


def _model(
    name: str, kinds: Mapping[str, Any], optional: Collection[str], about: Mapping[str, str]
) -> type[BaseModel]:
    """A model with these fields. Further keys are allowed, as when a ledger is read."""
    fields: dict[str, Any] = {
        key: (kind, Field(None if key in optional else ..., description=about.get(key))) for key, kind in kinds.items()
    }
    return create_model(name, __config__=ConfigDict(extra="allow"), **fields)


def _arguments_of(kind: type) -> dict[str, str]:
    """What the docstring says of each argument."""
    text = (kind.__doc__ or "").split("Args:")[1].split("Raises:")[0]
    found = re.findall(r"^        (\w+) \(.*\):\n((?:            .*\n)+)", text, re.MULTILINE)
    return {name: re.sub(r"\[`~?(.+?)`\]", r"`\1`", " ".join(lines.split())) for name, lines in found}


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A title that repeats the key says nothing; an object as title is a property of this name.
    kept = {key: item for key, item in schema.items() if key != "title" or isinstance(item, dict)}
    return {_LIMITS.get(key, key): _plain(item) for key, item in kept.items()}
