"""How a training went, as the ledger records it."""

import dataclasses
import itertools
import json

import pytest
import run_cases as cases
from hypothesis import given, strategies as st
from safetensors.torch import load_file

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.ledger import TaskEntry
from gs_lora_peft.ledger.entry import CURVE_NAMES
from gs_lora_peft.ledger.errors import InvalidLedgerError
from gs_lora_peft.runs.task import MAX_CURVE_POINTS, training_curves


def logged(epoch, **more):
    return {"loss": 1.0, "step": 3} | dict.fromkeys(CURVE_NAMES, 0.5) | {"epoch": epoch} | more


def test_norms_are_those_of_the_published_tensors(finished):
    """Group norms in the ledger agree with the files, and are 0.0 exactly where a group is absent from them."""
    folder, _ = finished
    for entry in ForgettingLedger.load(folder).tasks:
        tensors = load_file(folder / "tasks" / entry.name / "adapter_model.safetensors")
        norms = entry.groups["norms"]
        assert list(norms) == sorted([*entry.groups["active"], *entry.groups["zero"]])
        assert {name for name, norm in norms.items() if norm == 0.0} == set(entry.groups["zero"])
        for group in entry.groups["active"]:
            squares = [float(tensor.double().pow(2).sum()) for name, tensor in tensors.items() if f".{group}." in name]
            assert norms[group] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


def test_a_run_records_one_point_an_epoch(finished):
    """With the default of logging by epoch, the curves have the epochs of the training and end where it ended."""
    for entry in ForgettingLedger.load(finished[0]).tasks:
        assert list(entry.curves) == list(CURVE_NAMES)
        assert entry.curves["epoch"] == [1.0, 2.0, 3.0]
        assert entry.curves["active_groups"][-1] == len(entry.groups["active"])
        assert entry.curves["forget_accuracy"][0] > entry.curves["forget_accuracy"][-1]


def test_nothing_logged_nothing_recorded(base, data, tmp_path):
    """Without logs there are no curves, rather than empty ones, and the file does not mention them."""
    forgetter = cases.make_forgetter(base, tmp_path / "run", data, args=cases.make_args(logging_strategy="no"))
    (entry,) = forgetter.run(cases.requests(["bumblebee"]))
    assert entry.curves is None
    assert '"curves"' not in (tmp_path / "run" / "forgetting.json").read_text()


def test_ledgers_without_curves_are_read_and_kept(one_task):
    """An entry of an earlier version has neither curves nor norms; it is read, and written as it was."""
    ledger = ForgettingLedger.load(one_task)
    data = ledger.tasks[0].to_dict()
    del data["curves"], data["groups"]["norms"]
    old = TaskEntry.from_dict(json.loads(json.dumps(data)))
    assert old.curves is None
    assert old.to_dict() == data


@pytest.mark.parametrize(
    "curves",
    [
        [],
        {},
        {"epoch": [1.0]},
        {key: [] for key in CURVE_NAMES},
        {key: [1.0] for key in CURVE_NAMES} | {"epoch": [1.0, 2.0]},
        {key: ["high"] for key in CURVE_NAMES},
        dict.fromkeys(CURVE_NAMES, 1.0),
    ],
)
def test_damaged_curves_are_refused(one_task, curves):
    """What cannot be drawn is noticed when the ledger is read, not when it is."""
    entry = ForgettingLedger.load(one_task).tasks[0]
    with pytest.raises(InvalidLedgerError) as error:
        dataclasses.replace(entry, curves=curves)
    assert error.value.name.startswith("task_001.curves")


@pytest.mark.parametrize("norms", [[], {"vit.layers.0": "large"}, {"vit.layers.0": None}])
def test_damaged_norms_are_refused(one_task, norms):
    """Norms are numbers by name."""
    entry = ForgettingLedger.load(one_task).tasks[0]
    with pytest.raises(InvalidLedgerError) as error:
        dataclasses.replace(entry, groups={**entry.groups, "norms": norms})
    assert error.value.name.startswith("task_001.groups['norms']")


@given(st.integers(1, 1000))
def test_many_points_are_thinned_evenly(count):
    """At most a hundred points, first and last among them, in order, no two of them far apart."""
    epochs = training_curves([logged(float(number)) for number in range(count)])["epoch"]
    assert len(epochs) == min(count, MAX_CURVE_POINTS)
    assert (epochs[0], epochs[-1]) == (0, count - 1)
    steps = [after - before for before, after in itertools.pairwise(epochs)]
    assert not steps or max(steps) - min(steps) <= 1


def test_other_lines_of_the_log_are_left_out():
    """Evaluations, the summary at the end and numbers that are none do not become points."""
    history = [
        logged(1.0),
        {"eval_h_mean": 0.9, "epoch": 1.0},
        logged(2.0, retain_loss=float("nan")),
        {"train_loss": 2},
    ]
    assert training_curves(history) == {name: [1.0 if name == "epoch" else 0.5] for name in CURVE_NAMES}
    assert training_curves(history[1:]) is None
