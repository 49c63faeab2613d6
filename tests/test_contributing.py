"""CONTRIBUTING.md says what is true of the repository."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXCERPTS = re.findall(r"<!-- from (\S+) -->\n```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("path", "code"), EXCERPTS, ids=[path for path, _ in EXCERPTS])
def test_excerpts_are_taken_from_the_code(path, code):
    assert code in (ROOT / path).read_text("utf-8")


def test_paths_exist():
    paths = set(re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", TEXT))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {target for command in re.findall(r"`make ([\w -]+)`", TEXT) for target in command.split()}
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def test_rooms_are_those_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (floors,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [[room.strip().removeprefix("gs_lora_peft.") for room in floor.split("|")] for floor in floors]
    table = TEXT.split("| Room |")[1].split("\n\n")[0]
    assert [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]] == rooms
