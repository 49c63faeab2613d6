"""The scripts in examples/: each hands its words on to a command, and holds no plumbing of its own."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_thin(path):
    """At most 100 lines, and no parser."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 100
    assert "argparse" not in text
    assert "@dataclass" not in text


@pytest.mark.parametrize(
    ("name", "added"),
    [("forget", []), ("forget_detection", []), ("forget_faces", ["--pretrain"])],
)
def test_examples_are_the_command(name, added, monkeypatch):
    """`examples/forget.py WORDS` is `gs-lora forget WORDS`; faces without a model are pre-trained."""
    called = []
    monkeypatch.setattr("gs_lora_peft.cli.main", called.append)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--r", "4"])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert called == [["forget", *added, "--r", "4"]]
