"""`gs-lora benchmark` and the example: a method of one's own in the table with one flag."""

import json
import sys

import bench_cases as cases
import pytest
import yaml
from datasets import DatasetDict

from gs_lora_peft.audit import RetrainRecipe
from gs_lora_peft.cli import main

METHOD = """
from dataclasses import dataclass

from gs_lora_peft.methods.unlearning.random_labels import RandomLabels


@dataclass(kw_only=True)
class Mine(RandomLabels):
    name = "mine"
"""


@pytest.fixture
def call(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["benchmark", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def file(tmp_path, model, data, monkeypatch):
    """A configuration beside a saved model, saved data and the file of a method."""
    model.save_pretrained(tmp_path / "model")
    data.save_to_disk(tmp_path / "data")
    (tmp_path / "my_module.py").write_text(METHOD)
    given = {
        "model": "model",
        "dataset": "data",
        "output": "out",
        "settings": [{"name": "one", "requests": [["quokka"]]}],
        "methods": ["gs_lora"],
        "seeds": [0],
        "fixed_training": {"max_steps": 2},
        "audit": None,
        "processes": 1,
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(given))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "bench.yaml"


def test_a_method_of_ones_own(call, file):
    code, out, said = call("bench.yaml", "--methods", "my_module:Mine", "--seeds", "1")
    assert code == 0, said
    lines = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert {"original", "gs_lora", "mine"} <= set(lines)
    assert (file.parent / "out" / "results.parquet").is_file()


def test_a_part_adds_to_the_results(call, file):
    """Of what the file does not name, it has what the command names; of the file, what is done."""
    done = [("original", 0)]
    for options, new in (
        (["--seeds", "0"], ("gs_lora", 0)),
        (["--methods", "my_module:Mine", "--only", "--seeds", "1"], ("mine", 1)),
        (["--methods", "my_module:Mine", "--only"], ("mine", 0)),
    ):
        code, out, said = call("bench.yaml", *options, "--json")
        assert code == 0, said
        found = [(row["method"], row["seed"]) for row in json.loads(out)["rows"]]
        done = [name for name in done if name[1] == 0] + [new]
        assert sorted(found) == sorted(done)


def test_the_exit_code_says_that_a_run_failed(call, file):
    code, out, said = call("bench.yaml", "--only", "--methods", "own_method:Faulty")
    assert code == 1
    assert "1 error: RuntimeError" in out
    assert "ended with an error: 1" in said
    assert "errors" in said


@pytest.mark.parametrize(
    ("arguments", "changes", "named"),
    [
        (["--methods", "my_module:Other"], {}, "my_module:Other"),
        (["--seeds", "one"], {}, "--seeds"),
        (["--seeds", "0,0"], {}, "--seeds"),
        (["--only"], {}, "--only"),
        ([], {"dataset": None}, "dataset"),
        ([], {"model": "nowhere"}, "model"),
        ([], {"data": {"test_split": "no"}}, "no"),
    ],
)
def test_mistakes_are_named_before_any_work(call, file, arguments, changes, named):
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    code, _, said = call("bench.yaml", *arguments)
    assert code == 1
    assert named in said
    assert not (file.parent / "out").exists()


@pytest.mark.slow
def test_a_sample_of_the_digits(tmp_path, monkeypatch, capsys):
    """The example runs its methods on a third of the digits; model and references are trained for a moment only."""
    examples = cases.ROOT / "examples"
    monkeypatch.syspath_prepend(str(examples))
    import benchmark
    import digits

    settings = yaml.safe_load(benchmark.DIGITS.read_text())
    settings["audit"] |= {"attacks": ["answer", "centroid"], "budgets": {}, "references": 1, "controls": 0}
    settings["audit"] |= {"recipe": {"epochs": 1}, "cache": str(tmp_path / "cache")}
    settings["search"]["trials"] = 2
    settings["fixed_training"]["max_steps"] = 5
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(benchmark, "DIGITS", tmp_path / "digits.yaml")
    third = DatasetDict({name: rows.shard(3, 0, contiguous=False) for name, rows in digits.load_digits().items()})
    monkeypatch.setattr(benchmark, "load_digits", lambda: third)
    short = {"recipe": RetrainRecipe(epochs=3, learning_rate=2e-3), "cache": tmp_path / "cache"}
    monkeypatch.setattr(benchmark, "pretrained_vit", lambda data: digits.pretrained_vit(data, **short))
    monkeypatch.setattr(benchmark, "cached_assets_path", lambda *args, **kwargs: tmp_path / "assets")
    options = ["--seeds", "0", "--processes", "1", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--only", "--methods", "gs_lora,random_labels", *options])
    assert not end.value.code
    out = capsys.readouterr().out
    assert "random_labels" in out
    assert "recovery gap" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows if row["method"] == "gs_lora"] == [1, 2, 3]
    assert not [row for row in rows if row["outcome"].startswith("error")]
