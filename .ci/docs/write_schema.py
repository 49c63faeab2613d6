"""Writes the JSON Schema of the ledger, which the documentation publishes. `make schema` runs it."""

from __future__ import annotations

import json
from pathlib import Path

from gs_lora_peft.ledger import ledger_json_schema

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"


def schema_text() -> str:
    """The content of the file."""
    return json.dumps(ledger_json_schema(), indent=2, ensure_ascii=False) + "\n"


def schema_file() -> Path:
    """The file: its name holds the version of the format."""
    version = ledger_json_schema()["properties"]["schema_version"]["const"]
    return FOLDER / f"ledger-{version}.schema.json"


if __name__ == "__main__":
    schema_file().write_text(schema_text(), "utf-8")
