"""CONTRIBUTING.md says what is true of the repository."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXCERPTS = re.findall(r"<!-- from (\S+) -->\n```(python|diff)\n(.*?)```", TEXT, re.DOTALL)
OMISSION = "…\n"


def parts(kind, code):
    """The code of an excerpt, without the marks of a diff, in the pieces between omissions."""
    if kind == "diff":
        code = "".join(line[1:] for line in code.splitlines(keepends=True))
    return code.split(OMISSION)


@pytest.mark.parametrize(("path", "kind", "code"), EXCERPTS, ids=[path for path, _, _ in EXCERPTS])
def test_excerpts_are_taken_from_the_code(path, kind, code):
    """All pieces stand in the file, one after another, at one indentation: code in a string of a test has another."""
    text = (ROOT / path).read_text("utf-8")

    def is_excerpt(indentation):
        end = 0
        for part in parts(kind, code):
            part = textwrap.indent(part, indentation)
            start = text.find(part, end)
            if start < 0:
                return False
            end = start + len(part)
        return True

    assert any(is_excerpt(" " * width) for width in (0, 4, 8))


def test_every_block_of_code_is_an_excerpt():
    assert len(EXCERPTS) == len(re.findall(r"^```(?:python|diff)$", TEXT, re.MULTILINE)) > 0


def test_paths_exist():
    paths = set(re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", TEXT))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_places_exist():
    table = TEXT.split("| Question |")[1].split("\n\n")[0]
    places = [place for line in table.splitlines()[2:] for place in re.findall(r"`([\w/.]+/[\w/.]+)`", line)]
    assert places
    assert [place for place in places if not (ROOT / "src" / "gs_lora_peft" / place).exists()] == []


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {target for command in re.findall(r"`make ([\w -]+)`", TEXT) for target in command.split()}
    assert named <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def test_fast_tests_exist():
    (fast,) = re.findall(r"^FAST := \$\(addprefix tests/,(.*)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [path for path in re.split(r"[, ]+", fast) if not (ROOT / "tests" / path).exists()] == []


def test_rooms_are_those_of_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (floors,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [[room.strip().removeprefix("gs_lora_peft.") for room in floor.split("|")] for floor in floors]
    table = TEXT.split("| Room |")[1].split("\n\n")[0]
    assert [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]] == rooms
