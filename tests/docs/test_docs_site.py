"""The parts of the site that come from the code: every public name, the ledger's schema, and the check of the site."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from gs_lora_peft.ledger import ForgettingLedger, ledger_json_schema

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / ".ci" / "docs"))

import check_site
import generated
import model_matrix
import write_schema


@pytest.mark.parametrize("room", generated.rooms())
def test_every_public_name_has_an_entry(room):
    """The page of a room asks for the entry of each name that its façade exports."""
    marker = f"<!-- generated: api gs_lora_peft.{room} -->"
    assert marker in (ROOT / "docs" / "reference" / "api" / f"{room}.md").read_text("utf-8")
    assert f"- reference/api/{room}.md" in (ROOT / "mkdocs.yml").read_text("utf-8")
    entries = [line.removeprefix("::: ") for line in generated.api(f"gs_lora_peft.{room}").split() if line != ":::"]
    facade = importlib.import_module(f"gs_lora_peft.{room}")
    assert sorted(entries) == sorted(f"gs_lora_peft.{room}.{name}" for name in facade.__all__)


def test_the_overview_has_every_name_of_the_package():
    import gs_lora_peft

    overview = generated.overview()
    assert [name for name in gs_lora_peft.__all__ if f"[`{name}`]" not in overview] == []


def test_the_schema_is_that_of_the_code():
    """`make schema` writes it."""
    assert write_schema.schema_file().read_text("utf-8") == write_schema.schema_text()


def test_the_schema_has_every_key_of_real_ledgers():
    """Those of runs that earlier versions wrote, so that the schema describes them too."""
    files = sorted((ROOT / "tests" / "former_versions").rglob("forgetting.json"))
    assert files
    schema = ledger_json_schema()
    for file in files:
        data = json.loads(file.read_text("utf-8"))
        assert ForgettingLedger.load(file.parent)
        assert_described(data, schema, schema["$defs"])


def assert_described(value, schema, definitions):
    """Objects have the required keys and no unknown ones, as deep as the schema names keys; types fit."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        schemas = [part for part in schema["anyOf"] if (part.get("type") == "null") == (value is None)]
        assert schemas
        return assert_described(value, schemas[0], definitions)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
             "boolean": bool}  # fmt: skip
    types = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    assert not types or any(isinstance(value, kinds[kind]) for kind in types)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", ())) <= set(value)
        for key, item in value.items():
            if key in schema["properties"]:
                assert_described(item, schema["properties"][key], definitions)
    if isinstance(value, list):
        for item in value:
            assert_described(item, schema.get("items", {}), definitions)
    return None


def write_site(folder, name, page):
    from zlib import compress

    header = b"# Sphinx inventory version 2\n# Project: p\n# Version: 1\n# zlib\n"
    (folder / "objects.inv").write_bytes(header + compress(f"{name} py:class 1 a.html#$ -\n".encode()))
    (folder / "a.html").write_text(page, "utf-8")


def test_the_check_of_the_site_finds_what_is_missing(tmp_path, monkeypatch):
    """A link to no file, a link to no heading, and a public name without an entry."""
    monkeypatch.setattr(check_site, "rooms", lambda: [])
    monkeypatch.setattr(check_site, "public_names", lambda room="": {"There": "", "Gone": ""})
    page = (
        '<p id="here"></p><a href="#here">1</a><a href="#away">2</a><a href="b.html">3</a><a href="https://x.y">4</a>'
    )
    write_site(tmp_path, "gs_lora_peft.There", page)
    assert list(check_site.names_without_entry(tmp_path)) == ["gs_lora_peft.Gone"]
    assert sorted(check_site.dead_links(tmp_path)) == ["a.html → #away", "a.html → b.html"]


def test_the_matrix_of_models_lists_every_architecture():
    """`make models` writes the tables; an architecture that was added since is missing in them."""
    text = (ROOT / "docs" / "reference" / "models.md").read_text("utf-8")
    listed = re.findall(r"^\| ([^|]+) \| (?:\d+|none) \|", text, re.MULTILINE)
    assert listed == [name for _, name, _ in model_matrix.architectures()]


@pytest.mark.parametrize("wanted", ["ViT", "BERT", "AST", "yolos", "ResNet"])
def test_a_row_of_each_task_is_what_a_run_finds(wanted):
    (found,) = [one for one in model_matrix.architectures() if one[1] == wanted]
    with model_matrix.quiet():
        row = model_matrix.row_of(*found)
    assert f"\n{row}\n" in (ROOT / "docs" / "reference" / "models.md").read_text("utf-8")
