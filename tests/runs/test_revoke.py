"""Requests that are taken back: the model is rebuilt exactly, and what that does is measured and recorded."""

import shutil

import pytest
import run_cases as cases
import torch
from errors import refused

from gs_lora_peft import ForgetRequest, GSLoraConfig, load_forgotten, weights_fingerprint
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.ledger.errors import InvalidLedgerError
from gs_lora_peft.runs import scores as scoring


@pytest.fixture
def run(base, data, finished, tmp_path):
    """A forgetter in a copy of a folder with three tasks."""
    return cases.make_forgetter(base, shutil.copytree(finished[0], tmp_path / "run"), data)


@pytest.mark.parametrize("name", ["task_001", "task_002", "task_003"])
def test_revoke_one(base, data, run, name):
    """First, middle or last: what is left is to the bit what loading the remaining tasks gives."""
    entry = run.revoke(name, reason="withdrawn")
    kept = [f"task_00{number}" for number in (1, 2, 3) if name != f"task_00{number}"]
    assert entry.status == "revoked"
    assert entry.revocation["reason"] == "withdrawn"
    rebuilt = load_forgotten(cases.load_base(base), run.folder, merge=True)
    assert cases.same(cases.weights(run.model), cases.weights(rebuilt))
    by_name = load_forgotten(cases.load_base(base), run.folder, tasks=kept, merge=True)
    assert cases.same(cases.weights(by_name), cases.weights(rebuilt))
    ledger = ForgettingLedger.load(run.folder)
    assert [task.name for task in ledger.active_tasks] == kept
    assert ledger.to_dict() == run.ledger.to_dict()
    with refused("tasks", name, InvalidLedgerError):
        load_forgotten(cases.load_base(base), run.folder, tasks=[name])
    # The files stay, and the folder opens again in the same state.
    assert (run.folder / "tasks" / name / "adapter_model.safetensors").exists()
    assert cases.same(cases.weights(cases.make_forgetter(base, run.folder, data).model), cases.weights(run.model))


def test_what_it_does_is_measured(base, data, run):
    """The recorded scores are those of the model with and without the task, on the evaluation data."""
    rows = data["test"][:]

    def scores(model):
        hits = model(rows["pixel_values"]).logits.argmax(-1) == rows["label"]
        sets = {"acc_revoked": [0, 4], "acc_still_forgotten": [2, 5], "acc_retain": [1, 3]}
        return {
            name: pytest.approx(hits[torch.isin(rows["label"], torch.tensor(ids))].float().mean().item())
            for name, ids in sets.items()
        }

    before = scores(run.model)
    entry = run.revoke("task_002")
    assert entry.revocation["scores_before"] == before
    assert entry.revocation["scores_after"] == scores(run.model)
    # The tasks' classes come back, at least in part.
    assert entry.revocation["scores_after"]["acc_revoked"] > entry.revocation["scores_before"]["acc_revoked"]


def test_all_of_them_and_again(base, data, run):
    """With every task revoked, the base model is restored exactly, and the same classes can be forgotten again."""
    for name in ("task_002", "task_003", "task_001"):
        run.revoke(name)
    assert weights_fingerprint(run.model) == run.ledger.base_model["fingerprint"]
    entry = run.forget(ForgetRequest(["cassowary"]))
    assert entry.name == "task_004"
    assert entry.scores["after"]["acc_forget"] < 0.3
    first, again = (run.folder / "tasks" / name / "adapter_model.safetensors" for name in ("task_001", "task_004"))
    assert first.read_bytes() == again.read_bytes()
    rebuilt = load_forgotten(cases.load_base(base), run.folder, merge=True)
    assert cases.same(cases.weights(run.model), cases.weights(rebuilt))
    run.revoke("task_004")
    assert weights_fingerprint(run.model) == run.ledger.base_model["fingerprint"]


def test_forget_on_after_a_revocation(base, data, run):
    """The next task trains on the model without the revoked one, whose classes are samples to keep again."""
    run.revoke("task_002")
    entry = run.forget(ForgetRequest(["bumblebee"]))
    assert entry.name == "task_004"
    assert entry.sizes["retain"] == 3 * 12
    assert entry.scores["before"]["n_old"] == 2 * 5
    rebuilt = load_forgotten(cases.load_base(base), run.folder, merge=True)
    assert cases.same(cases.weights(run.model), cases.weights(rebuilt))


def test_tasks_on_other_modules(base, data, run, tmp_path):
    """Tasks that an adapter of another shape trained are taken back exactly as well."""
    before = cases.weights(run.model)
    run.recipe.config = GSLoraConfig(r=2, lora_alpha=2, target_modules="attention")
    run.forget(ForgetRequest(["bumblebee"]))
    assert not cases.same(cases.weights(run.model), before)
    # Opened with another configuration than the task's own.
    reopened = cases.make_forgetter(base, shutil.copytree(run.folder, tmp_path / "copy"), data)
    for forgetter in (run, reopened):
        forgetter.revoke("task_004")
        assert cases.same(cases.weights(forgetter.model), before)


@pytest.mark.parametrize("name", ["task_009", "task_1", None])
def test_tasks_that_cannot_be_revoked(run, name):
    """What is not in effect cannot be taken back; nothing changes."""
    before, state = cases.snapshot(run.folder), cases.weights(run.model)
    with refused("tasks", name, InvalidLedgerError):
        run.revoke(name)
    assert cases.snapshot(run.folder) == before
    assert cases.same(cases.weights(run.model), state)


def test_twice(run):
    """A second revocation of the same task is an error and records nothing."""
    run.revoke("task_002")
    before = cases.snapshot(run.folder)
    with refused("tasks", "task_002", InvalidLedgerError):
        run.revoke("task_002")
    assert cases.snapshot(run.folder) == before


@pytest.mark.parametrize("broken", ["before", "after", "save"])
def test_an_error_on_the_way(base, run, monkeypatch, broken):
    """If measuring or saving fails, the task stays in effect in ledger and model."""
    predict, calls = scoring.predict, []

    def fails(*args):
        calls.append(1)
        if len(calls) == {"before": 1, "after": 2}.get(broken):
            raise cases.OnPurposeError
        return predict(*args)

    def full(self):
        raise cases.OnPurposeError

    before, state = cases.snapshot(run.folder), cases.weights(run.model)
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "predict", fails)
        if broken == "save":
            patched.setattr(ForgettingLedger, "save", full)
        with pytest.raises(cases.OnPurposeError):
            run.revoke("task_002")
    assert cases.snapshot(run.folder) == before
    assert [entry.name for entry in run.ledger.active_tasks] == ["task_001", "task_002", "task_003"]
    assert cases.same(cases.weights(run.model), state)
    run.revoke("task_002")
    rebuilt = load_forgotten(cases.load_base(base), run.folder, merge=True)
    assert cases.same(cases.weights(run.model), cases.weights(rebuilt))
