"""The package as a whole: what it exports, and which room may import which."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import in_new_process

import gs_lora_peft

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "gs_lora_peft"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if any(path.glob("*.py")))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def test_every_public_name_resolves():
    """What `__all__` promises can be imported."""
    for name in gs_lora_peft.__all__:
        assert getattr(gs_lora_peft, name) is not None
    assert set(gs_lora_peft.__all__) <= set(dir(gs_lora_peft))


def test_imports_point_down():
    """The floors of the design: no import runs up, no room knows its neighbours, no two files import each other."""
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():  # the test extra goes without it; `make style` always runs it
        pytest.skip("import-linter is not installed")
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_room_is_used_by_its_facade():
    """Each folder has a contract that keeps other rooms from its files, and a floor."""
    assert len(ROOMS) > 10
    protected = [contract for contract in CONTRACTS if contract["type"] == "protected"]
    expected = [([f"gs_lora_peft.{room}.**"], [f"gs_lora_peft.{room}"]) for room in ROOMS]
    assert sorted((c["protected_modules"], c["allowed_importers"]) for c in protected) == expected
    assert not any("ignore_imports" in contract for contract in CONTRACTS)


def test_every_module_stands_on_a_floor():
    (floors,) = (contract for contract in CONTRACTS if contract["type"] == "layers")
    assert floors["exhaustive"]
    placed = [name for floor in floors["layers"] for name in floor.split(" | ")]
    files = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert sorted(placed) == sorted([*ROOMS, *files])


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_facades_export_what_their_stub_names(room):
    """A façade exports what its stub imports, with the same `__all__`, and every name of it resolves."""
    folder = PACKAGE / room
    if not (folder / "__init__.pyi").exists():
        assert room == "cli"  # one entrance, which `cli/__init__.py` imports itself
        return
    stub = ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    named = {alias.asname for node in imports for alias in node.names}
    listed = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert set(listed) == named
    assert len(listed) == len(named)
    facade = importlib.import_module(f"gs_lora_peft.{room}".rstrip("."))
    assert set(facade.__all__) == named
    for name in named:
        assert getattr(facade, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_stay_small(room):
    """At most 14 files in a room, and in each folder of it."""
    folders = {path.parent for path in (PACKAGE / room).rglob("*.py")}
    sizes = {folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders}
    assert max(sizes.values()) <= 14


def test_source_files_stay_small():
    """About 300 lines a file; one idea each."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert not long


FIRST = [
    "gs_lora_peft:export_forgotten",
    "gs_lora_peft:weights_fingerprint",
    "gs_lora_peft.runs:predict",
    "gs_lora_peft.objectives:ClassificationObjective",
    "gs_lora_peft.compat:base_of",
]


@pytest.mark.parametrize("name", FIRST)
def test_any_room_may_be_the_first(name):
    """Importing PEFT imports the tuner, which must not find a room half loaded, whatever is imported first."""
    module, _, attribute = name.partition(":")
    assert in_new_process(f"from {module} import {attribute}; print({attribute}.__name__)").strip() == attribute


def test_nothing_imports_the_package_from_within():
    """The package's own face is for users: a room that imported it could reach every floor above."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "gs_lora_peft" and not node.level:
                raise AssertionError(f"{path.name} imports {[alias.name for alias in node.names]} from gs_lora_peft")
