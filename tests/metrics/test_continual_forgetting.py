"""The numbers a forgetting is judged by: the paper's arithmetic, its corners, and the `evaluate` machinery."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.metrics import continual_forgetting_scores, h_mean

REFERENCES = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
PREDICTIONS = [0, 5, 1, 1, 2, 0, 0, 0, 4, -1]
ROLES = {"forget_classes": [0], "old_classes": [3], "missing_classes": [4]}
EXPECTED = {
    "acc_retain": 0.75,
    "acc_forget": 0.5,
    "acc_old": 0.0,
    "acc_missing": 0.5,
    "drop": 0.5,
    "h_mean": 0.6,
    "n_retain": 4,
    "n_forget": 2,
    "n_old": 2,
    "n_missing": 2,
}

rows = st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 6)), max_size=40)
fractions = st.floats(0, 1)


def score(pairs, **kwargs):
    return continual_forgetting_scores([p for p, _ in pairs], [r for _, r in pairs], **{**ROLES, **kwargs})


@pytest.fixture(scope="session")
def metric(tmp_path_factory):
    """Makes metrics that leave nothing in the user's cache."""
    from gs_lora_peft.metrics import ContinualForgetting

    return lambda **kwargs: ContinualForgetting(cache_dir=str(tmp_path_factory.mktemp("metric")), **kwargs)


def run_python(code, *args, home, **kwargs):
    """Runs code in a fresh, offline interpreter whose network is cut and whose caches are of its own."""
    cut = """
    import socket
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    """
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    script = textwrap.dedent(cut) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def output_of(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out.strip().splitlines()[-1]


# Arithmetic


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor, lambda x: np.array(x, dtype=np.int8)])
def test_scores_by_hand(convert):
    scores = continual_forgetting_scores(
        convert(PREDICTIONS), convert(REFERENCES), **ROLES, accuracy_forget_before=1.0
    )
    assert scores == pytest.approx(EXPECTED)
    assert list(scores) == list(EXPECTED)
    assert json.loads(json.dumps(scores)) == scores, "scores go to a JSON ledger"


@pytest.mark.parametrize(
    ("acc_retain", "acc_forget_before", "acc_forget", "published"),
    [  # percent: faces, ImageNet100 and few-shot rows of the tables for GS-LoRA and GS-LoRA++
        (74.16, 74.65, 0.00, 74.40),
        (73.37, 73.80, 0.00, 73.59),
        (74.88, 73.91, 0.06, 74.36),
        (72.45, 75.11, 0.00, 73.76),
        (85.00, 87.40, 0.10, 86.13),
        (69.07, 73.80, 11.10, 65.73),
        (74.88, 74.88, 72.45, 4.72),
    ],
)
def test_h_mean_of_published_rows(acc_retain, acc_forget_before, acc_forget, published):
    h = h_mean(acc_retain / 100, (acc_forget_before - acc_forget) / 100)
    assert 100 * h == pytest.approx(published, abs=0.02)


@given(fractions, fractions)
def test_h_mean_lies_between_its_two_sides(kept, drop):
    h = h_mean(kept, drop)
    assert h == h_mean(drop, kept)
    assert min(kept, drop) * (1 - 1e-12) <= h <= max(kept, drop) * (1 + 1e-12)
    assert h <= 2 * min(kept, drop), "nothing kept, or nothing forgotten, cannot be bought off with the other"


@pytest.mark.parametrize(
    ("kept", "drop", "h"),
    [(0, 0, 0), (0.8, 0, 0), (0, 0.8, 0), (0.8, -0.1, 0), (0, -1, 0), (1, 1, 1), (None, 1, None), (1, None, None)],
)
def test_h_mean_at_its_corners(kept, drop, h):
    assert h_mean(kept, drop) == h


@pytest.mark.parametrize(
    ("kept", "drop", "name"),
    [
        (74.2, 0.5, "acc_retain"),
        (0.5, 74.2, "drop"),
        (-0.1, 0, "acc_retain"),
        (0.1, -1.1, "drop"),
        (math.nan, 0, "acc_retain"),
        ("1", 0, "acc_retain"),
        (True, 0, "acc_retain"),
    ],
)
def test_h_mean_takes_fractions_only(kept, drop, name):
    """Percent, numbers out of range and other types are refused by name."""
    with refused(name):
        h_mean(kept, drop)


@given(rows, st.none() | fractions)
def test_scores_stay_in_their_bounds(pairs, before):
    scores = score(pairs, accuracy_forget_before=before)
    counts = {role: scores[f"n_{role}"] for role in ("retain", "forget", "old", "missing")}
    assert sum(counts.values()) == len(pairs), "every row counts for one role"
    for role, n in counts.items():
        accuracy = scores[f"acc_{role}"]
        assert (accuracy is None) == (n == 0)
        assert accuracy is None or 0 <= accuracy <= 1
    assert (scores["drop"] is None) == (before is None or counts["forget"] == 0)
    assert (scores["h_mean"] is None) == (scores["drop"] is None or counts["retain"] == 0)
    assert scores["h_mean"] is None or 0 <= scores["h_mean"] <= 1


@given(rows.flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs))))
def test_the_order_of_rows_does_not_matter(both):
    pairs, shuffled = both
    assert score(pairs, accuracy_forget_before=1.0) == score(shuffled, accuracy_forget_before=1.0)


def test_retain_classes_leave_other_rows_out():
    scores = continual_forgetting_scores(PREDICTIONS, REFERENCES, forget_classes=[0], retain_classes=[1])
    assert (scores["acc_retain"], scores["n_retain"]) == (1.0, 2)
    assert scores["n_retain"] + scores["n_forget"] < len(REFERENCES)


def test_a_model_before_any_task_has_an_accuracy_to_retain_alone():
    scores = continual_forgetting_scores([0, 1], [0, 0], forget_classes=[], accuracy_forget_before=1.0)
    assert scores["acc_retain"] == 0.5
    assert [scores[key] for key in ("acc_forget", "drop", "h_mean")] == [None] * 3


def test_a_drop_below_zero_is_told_and_not_rewarded():
    scores = continual_forgetting_scores([0, 1], [0, 1], forget_classes=[0], accuracy_forget_before=0.25)
    assert (scores["drop"], scores["h_mean"]) == (-0.75, 0.0)


@pytest.mark.parametrize(
    ("predictions", "references", "name", "value"),
    [
        ([0, 1], [0], "len(predictions)", 2),
        (np.zeros((2, 5)), [0, 1], "predictions.shape", (2, 5)),
        ([0.0, 1.0], [0, 1], "predictions.dtype", "float64"),
        (torch.ones(2, dtype=torch.bfloat16, requires_grad=True), [0, 1], "predictions.dtype", "float32"),
        ([True, False], [0, 1], "predictions.dtype", "bool"),
        (["0", "1"], [0, 1], "predictions.dtype", "<U1"),
        ([0, 1], [0, -100], "references", -100),
        (None, [0], "predictions.shape", ()),
    ],
)
def test_predictions_and_references_are_class_ids(predictions, references, name, value):
    """Other numbers, shapes and types are refused."""
    with refused(name, value):
        continual_forgetting_scores(predictions, references, forget_classes=[0])


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"forget_classes": ["tench"]}, "forget_classes", "tench"),
        ({"forget_classes": "tench"}, "forget_classes", "tench"),
        ({"forget_classes": [True]}, "forget_classes", True),
        ({"forget_classes": [-1]}, "forget_classes", -1),
        ({"forget_classes": 3}, "forget_classes", 3),
        ({"forget_classes": [1, 2], "old_classes": [2]}, "old_classes", [2]),
        ({"forget_classes": [1], "retain_classes": [1]}, "retain_classes", [1]),
        ({"forget_classes": [1], "accuracy_forget_before": 74.3}, "accuracy_forget_before", 74.3),
    ],
)
def test_settings_are_checked_everywhere(settings, name, value, metric):
    """The function, the constructor and `compute` refuse the same settings."""
    with refused(name, value):
        continual_forgetting_scores([0], [0], **settings)
    with refused(name, value):
        metric(**settings)
    with refused(name, value):
        metric(forget_classes=[]).compute(predictions=[0], references=[0], **settings)


# The metric


@pytest.mark.parametrize("keep_in_memory", [True, False])
def test_the_metric_gives_the_scores(metric, keep_in_memory):
    scorer = metric(**ROLES, accuracy_forget_before=1.0, keep_in_memory=keep_in_memory)
    for _ in range(2):  # a computation leaves nothing behind for the next
        scores = scorer.compute(predictions=torch.tensor(PREDICTIONS), references=np.array(REFERENCES))
        assert scores == pytest.approx(EXPECTED)
        json.dumps(scores)


@given(batches=st.lists(rows, min_size=1, max_size=4))
def test_how_rows_are_batched_does_not_matter(metric, batches):
    scorer = metric(**ROLES, keep_in_memory=True)
    for batch in batches:
        scorer.add_batch(predictions=[p for p, _ in batch], references=[r for _, r in batch])
    together = [pair for batch in batches for pair in batch]
    assert scorer.compute(accuracy_forget_before=0.9) == score(together, accuracy_forget_before=0.9)
    for prediction, reference in together[:3]:
        scorer.add(prediction=prediction, reference=reference)
    if together:
        assert scorer.compute() == score(together[:3])


def test_settings_of_a_computation_go_before_those_of_the_constructor(metric):
    scorer = metric(forget_classes=iter([1]), old_classes=[0])
    first = scorer.compute(predictions=[0, 1], references=[0, 1])
    assert (first["n_forget"], first["n_old"], first["drop"]) == (1, 1, None)
    other = scorer.compute(
        predictions=[0, 1], references=[0, 1], forget_classes=[0], old_classes=[], accuracy_forget_before=1.0
    )
    assert (other["n_forget"], other["n_old"], other["n_retain"], other["drop"]) == (1, 0, 1, 0.0)
    assert scorer.compute(predictions=[0, 1], references=[0, 1]) == first


def test_an_error_keeps_what_was_added(metric):
    scorer = metric()
    scorer.add_batch(predictions=[0], references=[0])
    with refused("forget_classes", None):
        scorer.compute()
    with refused("predictions.dtype", "float64"):
        scorer.add_batch(predictions=[1.7], references=[1])
    with refused("predictions.dtype", "float64"):
        scorer.add(prediction=1.7, reference=1)
    with refused("len(predictions)", 2):
        scorer.compute(predictions=[0, 1], references=[0], forget_classes=[0])
    assert scorer.compute(forget_classes=[0])["n_forget"] == 1


def test_combinations(metric, tmp_path):
    """Two metrics with classes of their own, and one of another kind, over the same rows."""
    import datasets
    import evaluate

    class RowCount(evaluate.Metric):
        def _info(self):
            ids = datasets.Value("int64")
            return evaluate.MetricInfo(
                description="", citation="", features=datasets.Features({"predictions": ids, "references": ids})
            )

        def _compute(self, predictions, references):
            return {"rows": len(predictions)}

    counter = RowCount(cache_dir=str(tmp_path))
    both = evaluate.combine({"first": metric(forget_classes=[0]), "second": metric(forget_classes=[1]), "n": counter})
    both.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    scores = both.compute()
    assert (scores["first_acc_forget"], scores["second_acc_forget"], scores["rows"]) == (0.5, 1.0, len(REFERENCES))

    same = evaluate.combine([metric(forget_classes=[0]), metric(forget_classes=[1])])
    scores = same.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores["continual_forgetting_0_acc_forget"] == 0.5
    assert scores["continual_forgetting_1_acc_forget"] == 1.0

    single = evaluate.combine([metric(**ROLES), counter])
    scores = single.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert (scores["acc_retain"], scores["rows"]) == (0.75, len(REFERENCES))


def test_the_metric_describes_itself(metric):
    scorer = metric(forget_classes=[0])
    assert scorer.name == "continual_forgetting"
    assert scorer.module_type == "metric"
    assert set(scorer.features) == {"predictions", "references"}
    assert "forgot" in scorer.description
    assert "predictions" in scorer.inputs_description


def test_unknown_names_of_the_package():
    import gs_lora_peft.metrics as metrics

    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="Accuracy"):
        _ = metrics.Accuracy


# In processes of their own


@pytest.mark.slow
def test_evaluate_is_imported_only_when_the_metric_is(tmp_path):
    """It takes seconds, which somebody who only asks for a split should not wait."""
    code = """
    import sys
    import gs_lora_peft.metrics as metrics
    metrics.continual_forgetting_scores([0], [0], forget_classes=[0])
    before = "evaluate" in sys.modules
    metrics.ContinualForgetting
    print(before, "evaluate" in sys.modules)
    """
    assert output_of(run_python(code, home=tmp_path)) == "False True"


@pytest.mark.slow
def test_the_file_can_be_loaded_by_evaluate(tmp_path):
    """`evaluate.load` of a path copies the file and its neighbours elsewhere; no network is needed."""
    import gs_lora_peft.metrics.scores as scores

    code = """
    import sys
    import evaluate
    metric = evaluate.load(sys.argv[1], forget_classes=[0])
    print(metric.compute(predictions=[0, 1, 1], references=[0, 0, 1])["acc_forget"])
    """
    path = Path(scores.__file__).with_name("continual_forgetting.py")
    assert output_of(run_python(code, path, home=tmp_path)) == "0.5"


@pytest.mark.slow
@pytest.mark.parametrize("second_is_empty", [False, True])
def test_two_processes_score_together(tmp_path, second_is_empty):
    """H is no mean of the processes' Hs: process 0 must see the rows of all, also where one got none."""
    code = """
    import json, sys
    from gs_lora_peft.metrics import ContinualForgetting
    rank, cache_dir, rows, settings = int(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
    metric = ContinualForgetting(
        **settings, cache_dir=cache_dir, num_process=2, process_id=rank, experiment_id="together", timeout=60
    )
    for start in range(0, max(1, len(rows)), 3):
        batch = rows[start : start + 3]
        metric.add_batch(predictions=[p for p, _ in batch], references=[r for _, r in batch])
    print(json.dumps(metric.compute()))
    """
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    shards = [pairs, []] if second_is_empty else [pairs[::2], pairs[1::2]]
    settings = json.dumps({**ROLES, "accuracy_forget_before": 1.0})
    processes = [
        run_python(code, rank, tmp_path / "cache", json.dumps(shard), settings, home=tmp_path)
        for rank, shard in enumerate(shards)
    ]
    try:
        first, second = [output_of(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert json.loads(first) == pytest.approx(EXPECTED)
    assert json.loads(second) is None
    assert not list((tmp_path / "cache").rglob("*.arrow")), "predictions do not stay on the disk"


@pytest.mark.shared
def test_real_scores(shared_data):
    """The reference face model's answers on 16 test images, scored against a count by hand."""
    from safetensors.numpy import load_file

    outputs = load_file(shared_data / "yale_faces" / "reference_outputs.safetensors")
    predictions, labels = outputs["cosine"].argmax(-1), outputs["labels"]
    forgotten = sorted(set(labels.tolist()))[:3]
    scores = continual_forgetting_scores(predictions, labels, forget_classes=forgotten, accuracy_forget_before=1.0)
    right = [p == r for p, r in zip(predictions, labels, strict=True) if r in forgotten]
    assert scores["acc_forget"] == sum(right) / len(right)
    assert scores["n_forget"] + scores["n_retain"] == 16
