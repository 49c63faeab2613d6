"""The package as a whole: what it exports, and which room may import which."""

import subprocess
import sys
from pathlib import Path

import pytest

import gs_lora_peft

ROOT = Path(__file__).resolve().parents[1]


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


def test_source_files_stay_small():
    """About 300 lines a file; one idea each."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := path.read_text().count("\n")) > 400
    }
    assert not long
