"""A result is read again only while everything that it depends on is the same."""

import sys

import bench_cases as cases
import pytest
from datasets import DatasetDict

from gs_lora_peft.benchmark import plan
from gs_lora_peft.benchmark.cells import CellRunner
from gs_lora_peft.benchmark.plan import Bench
from gs_lora_peft.benchmark.search import Search

MINE = """
from dataclasses import dataclass

from gs_lora_peft.methods.unlearning.random_labels import RandomLabels


@dataclass(kw_only=True)
class Changed(RandomLabels):
    name = "changed"
"""


DERIVED = """
from changed_method import Changed


class Derived(Changed):
    name = "derived"
"""


def places(config, model, data):
    """Files of the runs of the benchmark, and of its searches."""
    bench = Bench(config, model, data)
    runner = CellRunner(bench)
    searches = [Search(bench, entry.name, bench.scenarios["continual"]).path for entry in config.methods]
    return {runner._path(cell, None) for cell in bench.cells()}, set(searches)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "changed_method.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "changed_method", raising=False)
    search = {"trials": 2, "requests": 1}
    yield cases.config(tmp_path, methods=["changed_method:Changed"], search=search)
    for name in ("changed_method", "derived_method"):
        sys.modules.pop(name, None)


def test_the_same_benchmark_has_the_same_places(config, model, data):
    assert places(config, model, data) == places(config, model, DatasetDict(data))


@pytest.mark.parametrize("what", ["images", "version", "source"])
def test_what_runs_and_searches_depend_on(config, model, data, tmp_path, monkeypatch, what):
    before = places(config, model, data)
    if what == "images":  # the same labels
        data = DatasetDict(data, test=cases.rows(6, 5))
    elif what == "version":
        monkeypatch.setattr(plan, "__version__", "0.0.1")
    else:
        (tmp_path / "changed_method.py").write_text(MINE + "    forget_weight: float = 0.5\n")
    for first, second in zip(before, places(config, model, data), strict=True):
        assert not first & second


def test_a_run_depends_on_the_files_of_base_classes(config, model, data, tmp_path):
    """Those of the user; the version stands for those of this package."""
    (tmp_path / "derived_method.py").write_text(DERIVED)
    config = cases.config(tmp_path, methods=["derived_method:Derived"], search={"trials": 2, "requests": 1})
    before = places(config, model, data)
    (tmp_path / "changed_method.py").write_text(MINE + "\n")
    for first, second in zip(before, places(config, model, data), strict=True):
        assert not first & second


def test_a_search_depends_on_what_a_method_wants_to_try(config, model, data, monkeypatch):
    runs, searches = places(config, model, data)
    monkeypatch.setattr(sys.modules["changed_method"].Changed, "space", {"forget_weight": [0.1, 0.2]})
    changed = places(config, model, data)
    assert changed[0] == runs
    assert not changed[1] & searches


def test_names_whose_files_are_alike_are_told_apart(tmp_path, model, data):
    """Refused in one benchmark, but there may be two in a folder."""
    found = set()
    for name in ("a b", "a_b"):
        settings = [{"name": name, "requests": [[0]]}]
        bench = Bench(cases.config(tmp_path, settings=settings, methods=["random_labels"]), model, data)
        found |= {CellRunner(bench)._path(cell, None) for cell in bench.cells()}
    assert len(found) == 2
