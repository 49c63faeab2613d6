"""A benchmark trains, scores and audits every run once, goes on after a kill, and reports what failed."""

import json
import shutil
import stat
from dataclasses import replace

import bench_cases as cases
import pytest
from datasets import DatasetDict, load_dataset
from errors import refused

from gs_lora_peft.audit import retrain
from gs_lora_peft.benchmark import BenchmarkResults, cells, run_benchmark, search
from gs_lora_peft.benchmark.plan import Bench


def runs_of(results, method):
    return [row for row in results.rows if row["method"] == method]


def test_rows_of_a_method(finished, model):
    """One for each request; the last one has the audit."""
    first, last = runs_of(finished[1], "random_labels")
    assert [first["task"], last["task"], first["final"], last["final"]] == [1, 2, False, True]
    assert first["acc_old"] is None
    assert 0 <= last["acc_old"] <= 1
    assert first["stored_bytes"] > 0 < first["cpu_seconds"]
    # random_labels trains all weights.
    assert first["trainable"] == last["trainable"] == model.num_parameters()
    assert first["peak_bytes"] > 0
    assert "trainable, k ↓" in finished[1].table().header
    assert "recovery_gap" not in first
    assert last["membership_distance"] == last["excess_membership"] <= last["recovery_gap"]
    assert 0 <= last["tow"] <= 1
    assert min(last["kl_forget"], last["kl_retain"]) >= 0
    assert json.loads(last["options"])["method"]["name"] == "random_labels"


def test_the_yardsticks(finished):
    """The original has the scores and attacks of a model that forgot nothing; a retrained one is near the others."""
    (original,), (retrained,) = (runs_of(finished[1], name) for name in ("original", "retrained"))
    assert original["h_mean"] == 0
    assert original["recovery_gap"] > 50
    assert retrained["acc_forget"] == 0
    assert retrained["recovery_gap"] < original["recovery_gap"]
    assert retrained["tow"] > original["tow"]


def test_no_class_is_named(finished):
    config, _ = finished
    for path in (*config.output.glob("results.*"), *config.output.glob("tables/*"), config.output / "search.jsonl"):
        content = path.read_bytes()
        assert not [name for name in cases.NAMES if name.encode() in content]
        assert b"class_ids" not in content


def test_ids_leave_the_results_when_they_are_not_asked_for(tmp_path, model, data):
    """No run is carried out again for that, and none keeps them."""
    config = cases.config(tmp_path, audit=None, methods=["random_labels"], name_classes=True)
    named = run_benchmark(config, model, data, disable_tqdm=True)
    assert [row["class_ids"] for row in runs_of(named, "random_labels")] == ["[0]", "[1]"]
    results = run_benchmark(replace(config, name_classes=False), model, data, disable_tqdm=True)
    assert len(list(config.output.glob("cells/random_labels*"))) == 1
    for path in (*config.output.glob("cells/*"), config.output / "results.jsonl"):
        assert "class_ids" not in path.read_text()
    without = [{name: value for name, value in row.items() if name != "class_ids"} for row in named.rows]
    assert results.rows == without


def test_nothing_is_done_twice(finished, model, data, monkeypatch):
    config, before = finished
    monkeypatch.setattr(cells, "make_forgetter", None)
    monkeypatch.setattr(search, "make_forgetter", None)
    monkeypatch.setattr(cells.Yardsticks, "audit", None)
    assert run_benchmark(config, model, data, disable_tqdm=True).rows == before.rows


def known(rows):
    """Without the columns that a parquet file adds to rows that lack them."""
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def others(rows):
    return [row for row in rows if row["method"] != "gs_lora"]


def test_results_alone_are_gone_on_from(finished, model, data, tmp_path, monkeypatch):
    """A clone has the committed parquet files. Another seed is carried out, what they hold is not."""
    config, before = finished
    config = replace(config, output=tmp_path / "out", seeds=[0, 1], methods=config.methods[1:])
    config.output.mkdir()
    for path in finished[0].output.glob("*.parquet"):
        shutil.copy(path, config.output)
    called = []
    original = cells.CellRunner._run
    monkeypatch.setattr(
        cells.CellRunner, "_run", lambda self, cell, *rest: called.append(cell) or original(self, cell, *rest)
    )
    monkeypatch.setattr(search.Search, "_tried", None)
    results = run_benchmark(config, model, data, disable_tqdm=True)
    assert [(cell.method, cell.seed) for cell in called] == [("random_labels", 1)]
    assert known(row for row in results.rows if row["seed"] == 0) == known(others(before.rows))
    assert known(row for row in results.attacks if row["seed"] == 0) == known(others(before.attacks))
    assert known(results.trials) == known(others(before.trials))


def test_a_further_method_alone_is_carried_out(finished, model, data, tmp_path, monkeypatch):
    """Attacks on the original and the references are not repeated; the search has the same budget."""
    config, before = finished
    config = replace(config, output=shutil.copytree(config.output, tmp_path / "out"))
    called = []
    original = cells.CellRunner._run
    monkeypatch.setattr(
        cells.CellRunner, "_run", lambda self, cell, *rest: called.append(cell.method) or original(self, cell, *rest)
    )
    parts = set(config.output.glob("audit/parts/*"))
    results = run_benchmark(config.with_methods(["own_method:NegGrad"]), model, data, disable_tqdm=True)
    assert called == ["own_neggrad"]
    assert len(set(config.output.glob("audit/parts/*")) - parts) == len(cases.AUDIT["attacks"])
    assert [row for row in results.rows if row["method"] != "own_neggrad"] == before.rows
    assert "own_neggrad" in results.table().to_markdown()
    trials = {}
    for trial in results.trials:
        trials.setdefault(trial["method"], []).append(trial)
    assert {name: len(own) for name, own in trials.items()} == dict.fromkeys(
        ("gs_lora", "random_labels", "own_neggrad"), 2
    )


class Killed(BaseException):
    """Ends a benchmark as a kill does: nothing may catch it."""


def test_a_killed_benchmark_goes_on(tmp_path, model, data, monkeypatch):
    """A finished request and a finished run are not carried out again."""
    config = cases.config(tmp_path, audit=None, seeds=[0, 1], methods=["random_labels"])
    trained = []
    original = cells.ContinualForgetter._carry_out

    def counted(self, request, *rest, **options):
        if len(trained) == 3 and not killed:
            killed.append(True)
            raise Killed
        trained.append((self.recipe.args.seed, *request.classes))
        return original(self, request, *rest, **options)

    killed = []
    monkeypatch.setattr(cells.ContinualForgetter, "_carry_out", counted)
    with pytest.raises(Killed):
        run_benchmark(config, model, data, disable_tqdm=True)
    results = run_benchmark(config, model, data, disable_tqdm=True)
    assert trained == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(row["seed"], row["task"]) for row in runs_of(results, "random_labels")] == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    assert not list(config.output.glob("runs/*"))


def test_what_fails_is_a_row(tmp_path, model, data):
    """The table says so, and the text of the error, which names a class, stays in a file of its own."""
    methods = ["own_method:Broken", "own_method:Faulty", "salun"]
    config = cases.config(tmp_path, audit=None, methods=methods)
    results = run_benchmark(config, model, data, disable_tqdm=True)
    assert [row["outcome"] for row in results.rows if row["method"] == "broken"] == ["diverged"]
    assert [row["outcome"] for row in results.rows if row["method"] == "faulty"] == ["error: RuntimeError"]
    table = results.table().to_text()
    assert "0 of 1; 1 diverged" in table
    assert "0 of 1; 1 error: RuntimeError" in table
    note = next(config.output.glob("errors/faulty*"))
    assert "quokka" in note.read_text()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (note, note.parent)] == [0o600, 0o700]


def test_failed_runs_are_tried_again_if_asked(tmp_path, model, data, monkeypatch):
    config = cases.config(tmp_path, audit=None, methods=["own_method:Faulty"])
    for again in (False, True):  # what a failed training has left is in nobody's way
        (failed,) = run_benchmark(config, model, data, disable_tqdm=True, retry_failed=again).failed
        assert failed["outcome"] == "error: RuntimeError"
    called = []
    monkeypatch.setattr(
        cells.CellRunner, "_run", lambda *given: called.append(given) or [{"task": 2, "outcome": "forgotten"}]
    )
    run_benchmark(config, model, data, disable_tqdm=True)
    assert not called
    run_benchmark(config, model, data, disable_tqdm=True, retry_failed=True)
    assert called


@pytest.mark.parametrize("cause", ["attacks", "data"])
def test_an_audit_that_cannot_work_is_refused_before_any_training(tmp_path, model, data, cause):
    """No attack fits a classifier; the test data lack a forgotten class."""
    audit = cases.AUDIT | {"cache": str(tmp_path / "retrained")}
    if cause == "attacks":
        config, given = cases.config(tmp_path, audit=audit | {"attacks": ["detector_answer"]}), data
    else:
        kept = [row for row, label in enumerate(data["test"]["label"]) if int(label) != 1]
        config, given = cases.config(tmp_path, audit=audit), DatasetDict(data, test=data["test"].select(kept))
    with refused("audit.attacks" if cause == "attacks" else "classes of the data to judge on"):
        run_benchmark(config, model, given, disable_tqdm=True)
    assert not (tmp_path / "retrained").exists()
    assert not config.output.exists()


def test_an_audit_that_fails_on_the_original_ends_the_benchmark(tmp_path, model, data, monkeypatch):
    """Before any method trains; the next call tries again."""
    audit = cases.AUDIT | {"cache": str(tmp_path / "retrained"), "recipe": {"epochs": 2}}
    config = cases.config(tmp_path, audit=audit, methods=["random_labels"])
    monkeypatch.setattr(cells.Yardsticks, "audit", lambda *given: 1 / 0)
    monkeypatch.setattr(cells, "make_forgetter", None)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run_benchmark(config, model, data, disable_tqdm=True)
    assert "ZeroDivisionError" in next(config.output.glob("errors/original*")).read_text()


def test_an_audit_that_fails_is_tried_again_without_training(tmp_path, model, data, monkeypatch):
    config = cases.config(tmp_path, audit=None, methods=["random_labels"])
    trained, failing, original = [], ["once"], cells.ContinualForgetter._carry_out
    monkeypatch.setattr(
        cells.ContinualForgetter,
        "_carry_out",
        lambda *given, **options: trained.append(given) or original(*given, **options),
    )

    def audited(self, scenario, model):
        if model is not self.bench.model and failing:
            raise OSError(failing.pop())
        return {"recovery_gap": 1.0}, []

    monkeypatch.setattr(cells.CellRunner, "_audited", audited)
    results = run_benchmark(config, model, data, disable_tqdm=True)
    assert [row["outcome"] for row in results.failed] == ["error: OSError"]
    results = run_benchmark(config, model, data, disable_tqdm=True, retry_failed=True)
    assert not results.failed
    assert [row["task"] for row in runs_of(results, "random_labels")] == [1, 2]
    assert len(trained) == 2
    assert not list(config.output.glob("runs/*"))


@pytest.mark.parametrize("keep_runs", [True, False])
def test_another_audit_trains_nothing_again(tmp_path, model, data, monkeypatch, keep_runs):
    """Further controls audit nothing again; another key of the audit takes folders or weights of the runs."""
    audit = cases.AUDIT | {"cache": str(tmp_path / "retrained"), "references": 1, "controls": 0, "attacks": ["answer"]}
    options = {"methods": ["random_labels"], "keep_runs": keep_runs}
    trained, audited = [], []
    carry_out, audit_of = cells.ContinualForgetter._carry_out, cells.CellRunner._audited
    monkeypatch.setattr(
        cells.ContinualForgetter,
        "_carry_out",
        lambda *given, **more: trained.append(given) or carry_out(*given, **more),
    )
    monkeypatch.setattr(cells.CellRunner, "_audited", lambda *given: audited.append(given) or audit_of(*given))
    counts, results = [], []
    for changes in ({}, {"controls": 1}, {"max_samples": 50}):
        config = cases.config(tmp_path, audit=audit | changes, **options)
        results.append(run_benchmark(config, model, data, disable_tqdm=True))
        assert not results[-1].failed
        counts.append((len(trained), len(audited)))
    assert counts == [(2, 2), (2, 3), (2, 5)]
    # The attack asks for all samples of the forgotten classes in either audit: the weights are the same.
    first, *_, last = (
        [row["value"] for row in found.attacks if row["method"] == "random_labels"] for found in results
    )
    assert first == last


def test_settings_whose_trials_are_the_same_share_a_search(tmp_path, model, data, monkeypatch):
    """The first request of one is the only one of the other, and trials have one request."""
    settings = [{"name": "two", "requests": [[0], [1]]}, {"name": "one", "requests": [[0]]}]
    options = {"trials": 2, "learning_rates": [1e-3], "requests": 1}
    config = cases.config(tmp_path, audit=None, settings=settings, search=options, methods=["random_labels"])
    tried, original = [], search.Search._tried
    monkeypatch.setattr(search.Search, "_tried", lambda *given: tried.append(given) or original(*given))
    trials = run_benchmark(config, model, data, disable_tqdm=True).trials
    assert len(tried) == 2
    assert [(trial["setting"], trial["trial"]) for trial in trials] == [("two", 0), ("two", 1), ("one", 0), ("one", 1)]
    assert {name: value for name, value in trials[1].items() if name != "setting"} == {
        name: value for name, value in trials[3].items() if name != "setting"
    }


def test_models_that_are_given_are_the_yardstick_of_their_setting(tmp_path, model, data):
    """Nothing is retrained, and a setting without a model has no audit. Another model makes another audit."""
    settings = [{"name": "audited", "requests": [[0]]}, {"name": "other", "requests": [[0], [1]]}]
    folders = []
    for seed in (0, 1):
        recipe = cases.AUDIT["recipe"] | {"epochs": 1}
        folders.append(tmp_path / f"reference {seed}")
        cache = tmp_path / "cache"
        retrain(model, data["train"], [0], recipe=recipe, seed=seed, cache=cache).save_pretrained(folders[-1])
    gaps = []
    for folder in folders:
        audit = {"given": {"audited": [str(folder)]}, "attacks": ["answer", "membership"]}
        config = cases.config(tmp_path, settings=settings, audit=audit, methods=["random_labels"])
        rows = [row for row in run_benchmark(config, model, data, disable_tqdm=True).rows if row["final"]]
        assert {row["method"] for row in rows} == {"original", "random_labels"}
        assert [row["setting"] for row in rows if row.get("recovery_gap") is not None] == ["audited"] * 2
        gaps.append([row["kl_retain"] for row in rows if row["setting"] == "audited"])
    assert gaps[0] != gaps[1]
    audit["given"]["audited"] = [str(tmp_path)]
    with refused("audit.given['audited']"):
        run_benchmark(cases.config(tmp_path, settings=settings, audit=audit), model, data, disable_tqdm=True)


def test_a_setting_may_use_a_share_of_the_training_samples(tmp_path, model, data):
    """Of every class, drawn with the seed of the run."""
    settings = [{"name": "half", "requests": [[0]], "train_fraction": 0.5}]
    bench = Bench(cases.config(tmp_path, settings=settings, audit=None), model, data)
    chosen = [bench.data_of(bench.scenarios["half"], seed) for seed in (0, 0, 1)]
    pixels = [part["train"]["pixel_values"][:].numpy().tobytes() for part in chosen]
    assert sorted(chosen[0]["train"]["label"]) == sorted([*range(6)] * 6)
    assert pixels[0] == pixels[1] != pixels[2]
    assert chosen[0]["test"] is bench.dataset["test"]


def test_a_log_gets_lines_and_no_control_characters(tmp_path, model, data, capsys):
    config = cases.config(tmp_path, audit=None, methods=["random_labels"])
    run_benchmark(config, model, data)
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "\r" not in said


def test_failed_trials_are_tried_again_if_asked(tmp_path, model, data, monkeypatch):
    """A failed trial in the middle alone: those around it stay, in order."""
    options = {"trials": 3, "learning_rates": [1e-3, 1e-2], "requests": 1}
    config = cases.config(tmp_path, audit=None, methods=["random_labels"], search=options)
    original, failing, tried = search.make_forgetter, [1], []

    def made(bench, name, scenario, seed, found, folder, **given):
        tried.append(int(folder.name.rpartition("-")[2]))
        if tried[-1] in failing:
            raise OSError
        return original(bench, name, scenario, seed, found, folder, **given)

    monkeypatch.setattr(search, "make_forgetter", made)
    outcomes = [trial["outcome"] for trial in run_benchmark(config, model, data, disable_tqdm=True).trials]
    assert outcomes[1] == "error: OSError"
    failing.clear()
    run_benchmark(config, model, data, disable_tqdm=True)
    assert tried == [0, 1, 2]
    results = run_benchmark(config, model, data, disable_tqdm=True, retry_failed=True)
    assert tried == [0, 1, 2, 1]
    assert [trial["trial"] for trial in results.trials] == [0, 1, 2]
    assert not [trial for trial in results.trials if trial["outcome"].startswith("error")]


def test_the_search_sees_no_test_data_and_other_classes(finished, model, data):
    """Its images are training images, and none of its requests names a class that the benchmark forgets."""
    config, _ = finished
    bench = Bench(config, model, data)
    scenario = search.search_scenario(bench, bench.scenarios["continual"], config.search)
    assert len(scenario.requests) == config.search.requests
    assert not set(scenario.forgotten) & {0, 1}
    judged, tested = search.held_out(bench, config.search), data["test"]
    images = [
        {image.numpy().tobytes() for image in part["pixel_values"]}
        for part in (*judged.values(), data["train"], tested)
    ]
    assert images[0] | images[1] == images[2]
    assert not images[0] & images[1]
    assert not (images[0] | images[1]) & images[3]


def test_a_search_with_too_few_other_classes_says_so(tmp_path, model, data, caplog):
    settings = [{"name": "many", "requests": [[0, 1], [2, 3]]}, {"name": "one", "requests": [[0]]}]
    config = cases.config(tmp_path, audit=None, settings=settings, search={"trials": 1}, methods=["random_labels"])
    run_benchmark(config, model, data, disable_tqdm=True)
    (said,) = [record.getMessage() for record in caplog.records if "Trials of" in record.getMessage()]
    assert "'many'" in said
    assert "[2]" in said
    assert "[2, 2]" in said


def test_trials_are_different_and_begin_as_published(finished):
    for method in ("gs_lora", "random_labels"):
        options = [trial["options"] for trial in finished[1].trials if trial["method"] == method]
        assert json.loads(options[0]) == {}
        assert len(set(options)) == len(options) == 2


def test_trials_say_what_is_recovered_and_which_was_chosen(finished):
    for method in ("gs_lora", "random_labels"):
        trials = [trial for trial in finished[1].trials if trial["method"] == method]
        assert all(0 <= trial["recovered"] <= 100 for trial in trials)
        (chosen,) = [trial for trial in trials if trial["chosen"]]
        shown = [line for line in finished[1].search_table().to_markdown().splitlines() if f"| {method} |" in line]
        assert all(f"| {chosen['recovered']:.1f} |" in line for line in shown)
        assert shown


def test_the_best_trial_forgets_most_of_those_with_the_same_h():
    """One that did not forget would rank last in the table, whatever its H."""
    trials = [
        {"h_mean": 0.9, "acc_forget": 0.2, "outcome": "forgotten"},
        {"h_mean": 0.9, "acc_forget": 0.1, "outcome": "forgotten"},
        {"h_mean": 0.95, "acc_forget": 0.3, "outcome": "not forgotten"},
        {"h_mean": None, "outcome": "diverged"},
        {"h_mean": 0.5, "acc_forget": 0.0, "outcome": "forgotten"},
    ]
    assert search.best_of(trials) is trials[1]
    assert search.best_of(trials[2:4]) is trials[2]


def test_among_trials_of_nearly_the_same_h_the_one_that_hides_least_is_best():
    """H alone does not see what is only silent, and held-out images are few."""
    trials = [
        {"h_mean": 1.0, "acc_forget": 0.0, "recovered": 80.0, "outcome": "forgotten"},
        {"h_mean": 0.995, "acc_forget": 0.0, "recovered": 40.0, "outcome": "forgotten"},
        {"h_mean": 0.98, "acc_forget": 0.0, "recovered": 10.0, "outcome": "forgotten"},
        {"h_mean": 1.0, "acc_forget": 0.0, "recovered": 5.0, "outcome": "not forgotten"},
        {"h_mean": 0.999, "acc_forget": 0.0, "recovered": None, "outcome": "forgotten"},
    ]
    assert search.best_of(trials) is trials[0]
    assert search.best_of(trials, tolerance=1) is trials[1]
    assert search.best_of(trials, tolerance=3) is trials[2]


def test_files(finished, tmp_path):
    """Programs read rows, people tables and figures."""
    config, results = finished
    assert BenchmarkResults.load(config.output).rows == results.rows
    loaded = load_dataset("parquet", data_files=str(config.output / "results.parquet"), cache_dir=str(tmp_path))[
        "train"
    ]
    assert loaded["method"] == [row["method"] for row in results.rows]
    attacks = BenchmarkResults.load(config.output).attacks
    assert {row["method"] for row in attacks} == {row["method"] for row in results.rows}
    tables = {path.name for path in config.output.glob("tables/*")}
    names = ("continual", "continual-attacks", "continual-tasks", "search")
    assert tables == {f"{name}.{suffix}" for name in names for suffix in ("md", "tex", "csv")}
    assert {path.name for path in config.output.glob("figures/*")} == {"h-continual.png", "gap-continual.png"}


@pytest.mark.slow
def test_several_processes_give_the_same_rows(model, data, tmp_path):
    """Whatever the process and the order: but for time and memory that were measured."""
    measured = ("seconds", "cpu_seconds", "audit_seconds", "peak_bytes")
    options = {"methods": ["random_labels"], "seeds": [0, 1]}
    found = []
    for count in (2, 1):
        config = cases.config(tmp_path, processes=count, output=str(tmp_path / f"{count}"), **options)
        rows = run_benchmark(config, model, data, disable_tqdm=True).rows
        found.append([{name: value for name, value in row.items() if name not in measured} for row in rows])
    assert found[0] == found[1]


def test_few_shots_and_missing_classes(tmp_path, model, data):
    settings = [
        {"name": "few-shot", "requests": [[0, 1]], "shots": 4},
        {"name": "missing", "protocol": [5, 4], "missing_classes": 2},
    ]
    config = cases.config(tmp_path, audit=None, settings=settings, methods=["random_labels"], name_classes=True)
    few, first, last = (
        row
        for row in run_benchmark(config, model, DatasetDict(data), disable_tqdm=True).rows
        if row["method"] != "original"
    )
    assert (few["setting"], few["classes"], few["shots"], few["class_ids"]) == ("few-shot", 2, 4, "[0, 1]")
    assert (first["missing_classes"], last["tasks"]) == (2, 2)
    assert 0 <= last["acc_missing"] <= 1
