"""examples/benchmarks/gpu.py at a tiny size on a CPU: every loop, with and without compilation, gives a row."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for name in ("gpu", "step"):
        sys.modules.pop(name, None)


def table(text):
    """The rows of the table that is printed, as dictionaries."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[2:]]


def test_every_loop_is_measured(gpu, capsys):
    """The face model and a ViT; time is relative to the stock loop with the same use of torch.compile."""
    gpu.main(["--tiny", "--models", "vit-b", "face", "--minutes", "60"])
    rows = table(capsys.readouterr().out)
    found = {(row["model"], row["variant"], row["compiled"]): row for row in rows}
    expected = [(model, variant, "False") for model in ("vit-b", "face") for variant in gpu.VARIANTS]
    expected += [(model, variant, "True") for model in ("vit-b", "face") for variant in gpu.COMPILED]
    assert list(found) == expected
    for row in rows:
        assert float(row["img/s"]) > 0
        assert float(row["time of stock"]) == 1 or row["variant"] != "stock"
        assert row["share of matmul"].endswith("%")
        assert row["MiB"] == ""  # a CPU knows the peak of a whole process only


def test_what_does_not_fit_the_time_is_said(gpu, capsys):
    """Nothing is started after `--minutes`."""
    gpu.main(["--tiny", "--models", "vit-b", "--minutes", "0"])
    rows = table(capsys.readouterr().out)
    assert len(rows) == 6
    assert all(row["img/s"].startswith("left out") for row in rows)
