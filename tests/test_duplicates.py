"""The check for duplicated code, as `make style` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "duplicates.py"
CODE = "".join(f"value_{number} = compute({number})\n" for number in range(12))


def check(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_same_lines_in_two_files_are_found(tmp_path):
    """Whatever their indentation, and although comments and blank lines differ."""
    nested = "def copied():\n" + "".join(f"    {line}  # a comment\n\n" for line in CODE.splitlines())
    status, printed = check(tmp_path, one=f"import os\n{CODE}", two=nested)
    assert status == 1
    assert printed.count("\n") == 1
    assert f"{tmp_path / 'two.py'}:2" in printed
    assert f"{tmp_path / 'one.py'}:2" in printed


def test_the_same_lines_twice_in_one_file_are_found(tmp_path):
    assert check(tmp_path, one=f"{CODE}other = 1\n{CODE}")[0] == 1


@pytest.mark.parametrize(
    "text",
    [CODE.split("\n", 1)[1], '"""Text.\n\n' + CODE + '"""\n', "".join(f"import module_{n}\n" for n in range(12))],
    ids=["eleven lines", "docstring", "imports"],
)
def test_what_does_not_count(tmp_path, text):
    assert check(tmp_path, one=text, two=text) == (0, "")


def test_a_repeated_line_is_not_a_copy_of_itself(tmp_path):
    assert check(tmp_path, one="pause()\n" * 20) == (0, "")
