"""Runs of methods that train the model's own weights: carried out, killed, resumed, loaded, revoked and redone."""

import hashlib
import json
import shutil
import signal

import pytest
import run_cases as cases
import torch
from errors import refused
from safetensors.torch import load_file, save_file
from test_killed import MOMENTS, STEPS, KilledAt, Steps, Stopped, StoppedAt, deadly, in_child, needs_fork
from transformers import set_seed
from weight_methods import Anchored, Distilling, DistillingWeights, Edit

from gs_lora_peft import ForgetRequest, load_forgotten, merge_forgotten, verify_repository, weights_fingerprint
from gs_lora_peft.adapters import merge_changes, read_changes
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.ledger.errors import FilesDifferError, InvalidLedgerError, LaterTasksError, UnusableAdapterError
from gs_lora_peft.runs import leaving

DIFFERENCE = "weight_difference.safetensors"
REQUESTS = cases.REQUESTS[:2]


def make_args(method="ffn", **more):
    return cases.make_args(method, **{"learning_rate": 1e-2, **more})


def make_forgetter(base, folder, data, method="ffn", *, args=None, **more):
    return cases.make_forgetter(base, folder, data, args=args or make_args(method), method=method, **more)


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """A run of two requests by `ffn` that nothing disturbed: folder and forgetter. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    forgetter = make_forgetter(base, folder, data)
    forgetter.run(cases.requests(*REQUESTS))
    return folder, forgetter


@pytest.fixture
def run(base, data, whole, tmp_path):
    return make_forgetter(base, shutil.copytree(whole[0], tmp_path / "run"), data)


def test_what_a_run_leaves(base, whole):
    """It forgets; each task has one file with the tensors that changed; the ledger names them and what it cost."""
    folder, forgetter = whole
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["forgetting.json", "forgetting.lock", *(f"tasks/task_00{n}/{DIFFERENCE}" for n in (1, 2))]
    for entry in forgetter.ledger.tasks:
        assert entry.leaves_weights
        assert entry.scores["after"]["acc_forget"] < 0.3
        assert entry.scores["after"]["acc_retain"] > 0.8
        assert entry.settings["method"] == {"name": "ffn"}
        assert "config" not in entry.settings
        values = load_file(folder / "tasks" / entry.name / DIFFERENCE)
        assert sorted(values) == sorted(entry.groups["active"])
        assert all("mlp" in name for name in values), sorted(values)
        assert entry.groups["total"] == 8  # weight and bias of two Linears in each of two blocks
        assert entry.cost["trainable"] == sum(value.numel() for value in values.values())
        assert entry.cost["seconds"] > 0
        assert entry.cost["peak_bytes"] > 2**20
    assert forgetter.ledger.tasks[1].scores["after"]["acc_old"] < 0.5
    flags = {parameter.requires_grad for parameter in forgetter.model.parameters()}
    assert flags == {True}
    assert all(parameter.grad is None for parameter in forgetter.model.parameters())


def test_loaded_to_the_bit(base, data, whole, tmp_path):
    """By the package, with `merge` and without, by a new forgetter, and by safetensors alone."""
    folder, forgetter = whole
    expected = cases.weights(forgetter.model)
    for merge in (True, False):
        assert cases.same(cases.weights(load_forgotten(cases.load_base(base), folder, merge=merge)), expected)
    assert cases.same(cases.weights(make_forgetter(base, folder, data).model), expected)
    by_hand = cases.load_base(base)
    for name in ("task_001", "task_002"):
        by_hand.load_state_dict(load_file(folder / "tasks" / name / DIFFERENCE), strict=False)
    assert cases.same(cases.weights(by_hand), expected)
    merged = merge_forgotten(cases.load_base(base), folder, tmp_path / "merged")
    assert cases.same(cases.weights(cases.load_base(merged)), expected)
    first = cases.load_base(base)
    first.load_state_dict(load_file(folder / "tasks" / "task_001" / DIFFERENCE), strict=False)
    assert cases.same(cases.weights(load_forgotten(cases.load_base(base), folder, tasks=1)), cases.weights(first))
    report = verify_repository(folder, cases.load_base(base))
    assert (report.problems, report.base_checked, len(report.files)) == ([], True, 2)


def test_many_tasks_take_the_memory_of_one(base, whole):
    """Values that a later task replaces are not kept when the last model alone is wanted."""
    folder, forgetter = whole
    each, last = (read_changes(ForgettingLedger.load(folder), each=each) for each in (True, False))
    assert [len(change.values) for change in each] == [8, 8]
    assert [len(change.values) for change in last] == [0, 8]
    stepwise = merge_changes(merge_changes(cases.load_base(base), each[:1]), each[1:])
    assert cases.same(cases.weights(stepwise), cases.weights(forgetter.model))


def test_the_next_task_trains_on_the_last(base, data, whole, tmp_path):
    """As `ForgettingTrainer` does on the loaded model: the run adds nothing of its own."""
    folder, forgetter = whole
    recipe = forgetter.recipe
    model = load_forgotten(cases.load_base(base), folder, tasks=1)
    set_seed(recipe.args.seed)
    split = recipe.split(forgetter.train_dataset, [0, 4], [2], set())
    recipe.trainer(model, split, tmp_path).train()
    assert cases.same(cases.weights(model), cases.weights(forgetter.model))


KILLS = {
    "between two checkpoints": None,
    "within a checkpoint": MOMENTS["within a checkpoint"],
    "between folder and ledger": MOMENTS["between folder and ledger"],
    "within the export": lambda: deadly(leaving, "write_difference"),
}


@needs_fork
@pytest.mark.parametrize("moment", KILLS)
def test_killed_at(base, data, tmp_path, whole, moment):
    """As runs of adapters: the same requests go on where they were, and give the same bits."""

    def dies():
        callbacks = []
        if moment in STEPS:
            callbacks.append(KilledAt(STEPS[moment], "task_002"))
        else:
            KILLS[moment]()
        make_forgetter(base, tmp_path, data, callbacks=callbacks).run(cases.requests(*REQUESTS))

    assert in_child(dies) == signal.SIGKILL
    steps = Steps()
    forgetter = make_forgetter(base, tmp_path, data, callbacks=[steps])
    entries = forgetter.run(cases.requests(*REQUESTS))
    assert [entry.classes for entry in entries] == [[2], [0, 4]]
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(whole[0] / "tasks")
    assert cases.same(cases.weights(forgetter.model), cases.weights(whole[1].model))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert moment != "between two checkpoints" or steps.taken["task_002"][0] == 5


def test_an_error_leaves_the_model_as_it_was(base, data, whole, tmp_path, monkeypatch):
    """Weights and flags come back, also if nothing of the task is kept."""

    class Fails(Edit):
        def leave(self):
            raise cases.OnPurposeError

    forgetter = make_forgetter(base, tmp_path, data, Fails())
    before = cases.weights(forgetter.model)
    with pytest.raises(cases.OnPurposeError):
        forgetter.forget(ForgetRequest(["cassowary"]))
    assert cases.same(cases.weights(forgetter.model), before)
    assert forgetter.ledger.tasks == ()
    assert not (tmp_path / "tasks").exists()


def test_what_is_discarded(base, data, tmp_path):
    """Of a request that was stopped before the ledger had it, nothing stays, also of what the method keeps."""
    forgetter = make_forgetter(base, tmp_path, data, Anchored())

    def stops(change):
        raise KeyboardInterrupt

    forgetter._record = stops
    with pytest.raises(KeyboardInterrupt):
        forgetter.forget(ForgetRequest(["cassowary"]))
    assert list(tmp_path.glob("method/task_001/*"))
    del forgetter._record
    forgetter.discard_unfinished()
    assert not list(tmp_path.rglob("task_001"))
    forgetter.forget(ForgetRequest(["aardvark"]))


def test_what_the_model_must_keep(base, data, tmp_path):
    """A method that replaces parts of the model by others leaves nothing that could be loaded."""

    class Replaces(Edit):
        def on_train_end(self, args, state, control, **kwargs):
            self.trainer.model.classifier.bias = torch.nn.Parameter(torch.zeros(7))

    forgetter = make_forgetter(base, tmp_path, data, Replaces())
    with refused("tensors of the trained model", ["classifier.bias"]):
        forgetter.forget(ForgetRequest(["cassowary"]))


@pytest.mark.parametrize("method", ["gs_lora", "ffn"])
def test_the_cost_of_all_attempts(base, data, tmp_path, method):
    """A resumed training adds the time until the checkpoint that it goes on from."""
    args = cases.make_args() if method == "gs_lora" else make_args()
    forgetter = make_forgetter(base, tmp_path, data, method, args=args, callbacks=[StoppedAt(7)])
    with pytest.raises(Stopped):
        forgetter.forget(ForgetRequest(["cassowary"]))
    path = tmp_path / "work" / "task_001" / "checkpoint-4" / "cost.json"
    found = json.loads(path.read_text())
    assert 0 < found["seconds"] < 60
    path.write_text(json.dumps({"seconds": 1000.0, "peak_bytes": 2**50}))
    entry = make_forgetter(base, tmp_path, data, method, args=args).forget(ForgetRequest(["cassowary"]))
    assert 1000 < entry.cost["seconds"] < 1060
    assert entry.cost["peak_bytes"] == 2**50
    assert entry.curves is not None
    assert ("active_groups" in entry.curves) is (method == "gs_lora")
    assert ForgettingLedger.load(tmp_path).tasks[0].to_dict() == entry.to_dict()


# Revoking and redoing


def test_the_last_is_revoked_and_redone(base, data, run, whole):
    run.revoke("task_002", reason="withdrawn")
    one = load_forgotten(cases.load_base(base), whole[0], tasks=1)
    assert cases.same(cases.weights(run.model), cases.weights(one))
    assert cases.same(cases.weights(load_forgotten(cases.load_base(base), run.folder)), cases.weights(one))
    again = run.run(cases.requests(*REQUESTS))[1]
    assert again.name == "task_003"
    assert cases.same(cases.weights(run.model), cases.weights(whole[1].model))
    assert run.redo().name == "task_004"
    assert cases.same(cases.weights(run.model), cases.weights(whole[1].model))
    for name in ("task_004", "task_001"):
        run.revoke(name)
    assert weights_fingerprint(run.model) == run.ledger.base_model["fingerprint"]


def test_one_in_the_middle_cannot_be_left_out(base, run):
    """The values of the second task hold what the first one did: leaving it out would have no effect."""
    before, state = cases.snapshot(run.folder), cases.weights(run.model)
    ledger = ForgettingLedger.load(run.folder)
    for leave_out in (
        lambda: run.revoke("task_001"),
        lambda: ledger.revoke("task_001"),
        lambda: load_forgotten(cases.load_base(base), run.folder, tasks=["task_002"]),
    ):
        with pytest.raises(LaterTasksError) as error:
            leave_out()
        assert (error.value.task, error.value.later) == ("task_001", ["task_002"])
    assert cases.snapshot(run.folder) == before
    assert cases.same(cases.weights(run.model), state)


def test_tasks_that_changed_other_tensors_are_independent(base, data, run):
    """Before or after: the values of the one do not hold the other."""
    run.recipe.method, run.recipe.args = Edit(), make_args(Edit())
    run.forget(ForgetRequest(["flamingo"]))
    with pytest.raises(LaterTasksError):
        run.revoke("task_001")
    run.revoke("task_002")
    run.revoke("task_001")
    bias = run.model.classifier.bias
    expected = cases.load_base(base)
    with torch.no_grad():
        expected.classifier.bias.copy_(bias)
    assert cases.same(cases.weights(run.model), cases.weights(expected))
    assert bias[5] < -90


def test_adapters_and_weights_in_one_run(base, data, tmp_path):
    """They build on each other. An adapter before weights stays; one after them can be revoked, and so can they."""
    forgetter = cases.make_forgetter(base, tmp_path / "run", data)
    forgetter.forget(ForgetRequest(["cassowary"]))
    forgetter.recipe.method, forgetter.recipe.args = Edit(), make_args(Edit())
    forgetter.forget(ForgetRequest(["aardvark"]))
    forgetter.recipe.method, forgetter.recipe.args = "gs_lora", cases.make_args()
    forgetter.recipe.__post_init__()
    forgetter.forget(ForgetRequest(["flamingo"]))
    for model in (load_forgotten(cases.load_base(base), forgetter.folder), make_again(base, data, forgetter)):
        assert cases.same(cases.weights(model), cases.weights(forgetter.model))
    with pytest.raises(LaterTasksError):
        forgetter.revoke("task_001")
    forgetter.revoke("task_002")
    forgetter.revoke("task_001")
    rest = load_forgotten(cases.load_base(base), forgetter.folder, merge=True)
    assert cases.same(cases.weights(rest), cases.weights(forgetter.model))


def make_again(base, data, forgetter):
    return cases.make_forgetter(base, forgetter.folder, data).model


# Files from elsewhere


def rewritten(folder, values, **groups):
    """Replaces the file of the second task, and what the ledger says of it."""
    path = folder / "tasks" / "task_002" / DIFFERENCE
    save_file(values, path) if values else path.write_bytes(b"no tensors")
    ledger = ForgettingLedger.load(folder)
    entry = ledger.tasks[1].to_dict()
    entry["files"] = {f"tasks/task_002/{DIFFERENCE}": hashlib.sha256(path.read_bytes()).hexdigest()}
    entry["groups"] |= {"active": sorted(values), **groups}
    ledger.tasks = (ledger.tasks[0], type(ledger.tasks[1]).from_dict(entry))
    ledger.save()


@pytest.mark.parametrize("broken", ["nan", "shape", "dtype", "unknown", "unlisted", "changed", "no tensors"])
def test_files_that_do_not_fit_are_refused(base, run, broken):
    """Before the model changes, and by verification as well."""
    path = run.folder / "tasks" / "task_002" / DIFFERENCE
    values = load_file(path)
    name = next(iter(values))
    if broken == "nan":
        values[name].view(-1)[0] = torch.nan
    elif broken == "shape":
        values[name] = values[name].flatten()[:1].clone()
    elif broken == "dtype":
        values[name] = values[name].double()
    elif broken == "unknown":
        values["vit.nothing.weight"] = values.pop(name)
    elif broken == "no tensors":
        values = {}
    expected = UnusableAdapterError
    if broken == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        expected = FilesDifferError
    elif broken == "unlisted":
        rewritten(run.folder, values, active=sorted(values)[1:])
        expected = InvalidLedgerError
    else:
        rewritten(run.folder, values)
    model = cases.load_base(base)
    before = cases.weights(model)
    with pytest.raises(expected):
        load_forgotten(model, run.folder)
    assert cases.same(cases.weights(model), before)
    assert verify_repository(run.folder, model).problems
    assert cases.same(cases.weights(model), before)


# What methods keep, and the model before all tasks


def test_what_a_method_leaves_reaches_its_later_tasks(base, data, tmp_path):
    """In the same process and in a new one alike; it lies beside the tasks, for its owner alone."""
    requests = cases.requests(["cassowary"], ["aardvark"], ["flamingo"])
    method = Anchored()
    whole = make_forgetter(base, tmp_path / "whole", data, method)
    whole.run(requests)
    for count in (1, 2, 3):
        forgetter = make_forgetter(base, tmp_path / "parts", data, method)
        forgetter.run(requests[:count])
    folder = tmp_path / "parts"
    assert cases.snapshot(folder / "tasks") == cases.snapshot(tmp_path / "whole" / "tasks")
    assert cases.snapshot(folder / "method") == cases.snapshot(tmp_path / "whole" / "method")
    assert (folder / "method").stat().st_mode & 0o077 == 0
    entries = forgetter.ledger.tasks
    for entry in entries:
        assert list(entry.method_files) == [f"method/{entry.name}/method.safetensors"]
    # The square of the change, as the file of the task has it.
    changed = load_file(folder / "tasks" / "task_001" / DIFFERENCE)
    kept = load_file(folder / "method" / "task_001" / "method.safetensors")
    original = cases.load_base(base).state_dict()
    for name, value in changed.items():
        assert torch.equal(kept[name], (value - original[name]) ** 2)
    assert verify_repository(folder, cases.load_base(base)).problems == []
    # Without a pull towards them, the second task would have ended elsewhere.
    free = make_forgetter(base, tmp_path / "free", data, Anchored(strength=0.0))
    free.run(requests[:2])
    first, second = (f"tasks/task_00{n}/{DIFFERENCE}" for n in (1, 2))
    assert (folder / first).read_bytes() == (tmp_path / "free" / first).read_bytes()
    assert (folder / second).read_bytes() != (tmp_path / "free" / second).read_bytes()


def test_what_is_missing_or_changed_of_it(base, data, tmp_path):
    """Refused before any work, but only if the method needs it."""
    folder = tmp_path / "run"
    make_forgetter(base, folder, data, Anchored()).forget(ForgetRequest(["cassowary"]))
    path = folder / "method" / "task_001" / "method.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x07")
    forgetter = make_forgetter(base, folder, data, Anchored())
    with pytest.raises(FilesDifferError):
        forgetter.forget(ForgetRequest(["aardvark"]))
    assert len(verify_repository(folder).problems) == 1
    shutil.rmtree(folder / "method")
    with refused(f"files of the method 'anchored' in '{folder}'", kind=InvalidLedgerError):
        forgetter.forget(ForgetRequest(["aardvark"]))
    assert not (folder / "work").exists()
    make_forgetter(base, folder, data, Edit()).forget(ForgetRequest(["aardvark"]))


@pytest.mark.parametrize("method", [Distilling, DistillingWeights])
def test_the_model_before_all_tasks(base, data, tmp_path, method):
    """`original()` is the base model, and `before()` the one with the earlier task, in each step of the second one."""
    args = (cases.make_args if method is Distilling else make_args)(method())
    for restart in (False, True):
        folder = tmp_path / str(restart)
        forgetter = make_forgetter(base, folder, data, method(), args=args)
        forgetter.forget(ForgetRequest(["cassowary"]))
        if restart:
            forgetter = make_forgetter(base, folder, data, method(), args=args)
        method.noted.clear()
        forgetter.forget(ForgetRequest(["aardvark"]))
        assert len(method.noted) > 5
        first = load_forgotten(cases.load_base(base), folder, tasks=1, merge=True)
        for model, place in ((cases.load_base(base), 1), (first, 2)):
            for step in method.noted:
                with torch.no_grad():
                    torch.testing.assert_close(model(step[0]).logits, step[place], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(method.noted[0][1], method.noted[0][2], atol=1e-2)
    assert cases.snapshot(tmp_path / "True" / "tasks") == cases.snapshot(tmp_path / "False" / "tasks")
