"""Requests that break down: an error leaves model, ledger and files as they were, and the next request works."""

import contextlib
import errno
import json
import os

import pytest
import run_cases as cases
from errors import refused
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Trainer, TrainerCallback

from gs_lora_peft import ContinualForgetter, ForgetRequest, NonFiniteLossError, load_forgotten
from gs_lora_peft.io import writing
from gs_lora_peft.ledger.errors import UnfinishedRequestError
from gs_lora_peft.runs import scores as scoring
from gs_lora_peft.runs.workspace import Workspace

try:
    import resource
except ImportError:
    resource = None


class Breaks(TrainerCallback):
    """Raises an error at one step of one task, as long as it is armed."""

    def __init__(self, step, task="task_001", error=cases.OnPurposeError):
        self.step, self.task, self.error, self.armed = step, task, error, True
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        if self.armed and state.global_step == self.step and args.output_dir.endswith(self.task):
            raise self.error


@contextlib.contextmanager
def full_disk(monkeypatch, *names):
    """Files whose name begins with one of `names` cannot be written any more."""
    write, opened = os.write, {}
    new_staged = writing._new_staged

    def watched(target, *, folder):
        path, fd = new_staged(target, folder=folder)
        opened[fd] = target.name
        return path, fd

    def full(fd, data):
        if opened.get(fd, "").startswith(names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_new_staged", watched)
        patched.setattr(os, "write", full)
        yield


def is_bare(model, base, folder):
    """The model is what the ledger says, to the bit, and nothing of PEFT is left on it."""
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not hasattr(model, "peft_config")
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    rebuilt = cases.load_base(base)
    if (folder / "forgetting.json").exists():
        rebuilt = load_forgotten(rebuilt, folder, merge=True)
    return cases.same(cases.weights(model), cases.weights(rebuilt))


@pytest.mark.parametrize(("step", "task"), [(1, "task_001"), (5, "task_001"), (3, "task_002"), (9, "task_002")])
def test_an_error_in_training(base, data, tmp_path, finished, step, task):
    """The wrapper comes off, weights and ledger are those before, and the same request then gives the same adapter."""
    breaks = Breaks(step, task)
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[breaks])
    with pytest.raises(cases.OnPurposeError):
        forgetter.run(cases.requests())
    assert is_bare(forgetter.model, base, tmp_path)
    assert forgetter.ledger.next_task_name() == task
    breaks.armed, breaks.steps = False, []
    forgetter.run(cases.requests())
    # Steps before the last checkpoint (every fourth) were not taken again.
    assert breaks.steps[0] == step // 4 * 4 + 1
    assert cases.snapshot(tmp_path / "tasks") == cases.snapshot(finished[0] / "tasks")
    assert cases.same(cases.weights(forgetter.model), cases.weights(finished[1].model))
    assert not (tmp_path / "work").exists()


def test_another_request_after_an_error(base, data, tmp_path, finished):
    """After an error, another request can be made. It does not use the files of the failed one."""
    breaks = Breaks(5)
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[breaks])
    with pytest.raises(RuntimeError):
        forgetter.forget(ForgetRequest(["dragonfly"]))
    assert (tmp_path / "work" / "task_001" / "failed.json").exists()
    breaks.armed = False
    forgetter.forget(cases.requests()[0])
    written = cases.snapshot(tmp_path / "tasks" / "task_001")
    assert written == cases.snapshot(finished[0] / "tasks" / "task_001")


def test_an_error_without_a_checkpoint_leaves_no_names(base, data, tmp_path):
    """Nothing can be gone on from, so nothing says what was asked for."""
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[Breaks(1)])
    with pytest.raises(RuntimeError):
        forgetter.forget(ForgetRequest(["dragonfly"]))
    assert cases.snapshot(tmp_path) == {}


def test_other_settings_after_an_error(base, data, tmp_path):
    """After an error the same request may be asked for with other settings; it then starts from the beginning."""
    breaks = Breaks(5)
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[breaks])
    with pytest.raises(RuntimeError):
        forgetter.forget(ForgetRequest([2]))
    breaks.armed, breaks.steps = False, []
    forgetter.recipe.args.learning_rate = 0.01
    entry = forgetter.forget(ForgetRequest([2]))
    assert breaks.steps[0] == 1
    assert entry.settings["training"]["learning_rate"] == 0.01


def test_an_interrupted_request_is_not_forgotten(base, data, tmp_path, finished):
    """A run that was stopped is continued: with no other request and no other settings, unless it is given up."""
    breaks = Breaks(5, error=KeyboardInterrupt)
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[breaks])
    with pytest.raises(KeyboardInterrupt):
        forgetter.forget(ForgetRequest(["dragonfly"]))
    assert is_bare(forgetter.model, base, tmp_path)
    before = cases.snapshot(tmp_path)
    other = cases.make_forgetter(base, tmp_path, data, args=cases.make_args(learning_rate=0.01, seed=3))
    for name, differences in (
        ("cassowary", {}),
        ("dragonfly", {"learning_rate": (0.05, 0.01), "seed": (42, 3)}),
    ):
        with pytest.raises(UnfinishedRequestError) as error:
            other.forget(ForgetRequest([name]))
        assert (error.value.path, error.value.differences) == (tmp_path / "work" / "task_001", differences)
        assert cases.snapshot(tmp_path) == before
    curve = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}}
    other = cases.make_forgetter(base, tmp_path, data, args=cases.make_args(**curve))
    with pytest.raises(UnfinishedRequestError) as error:
        other.forget(ForgetRequest(["dragonfly"]))
    assert error.value.differences["lr_scheduler_kwargs"][1] == {"min_lr": 1e-5}
    breaks.armed = False
    forgetter.discard_unfinished()
    assert cases.snapshot(tmp_path) == {}
    forgetter.forget(cases.requests()[0])
    written = cases.snapshot(tmp_path / "tasks" / "task_001")
    assert written == cases.snapshot(finished[0] / "tasks" / "task_001")


def test_a_task_revoked_meanwhile(base, data, one_task, caplog):
    """A checkpoint rests on the tasks that were in effect; when they have changed, the request starts again."""
    breaks = Breaks(5, "task_002", KeyboardInterrupt)
    forgetter = cases.make_forgetter(base, one_task, data, callbacks=[breaks])
    with pytest.raises(KeyboardInterrupt):
        forgetter.run(cases.requests(["bumblebee"], [2]))
    breaks.armed, breaks.steps = False, []
    forgetter.revoke("task_001")
    entries = forgetter.run(cases.requests(["bumblebee"], [2]))
    assert "tasks was ['task_001'] and is []" in caplog.text
    assert breaks.steps[0] == 1
    # The one that was under way comes first, the revoked one at the end; entries are in the order of the requests.
    assert [(entry.name, entry.classes) for entry in entries] == [("task_003", [1]), ("task_002", [2])]


@pytest.mark.parametrize("half", ["forget", "retain"])
def test_a_loss_that_is_no_number(base, data, one_task, half):
    """NaN stops the run, the error says which half, the last good state is kept, and nothing else has changed."""
    rows = data["train"].with_format("numpy")[:]
    forgotten = 2
    where = (rows["label"] == forgotten) if half == "forget" else (rows["label"] == 5)
    rows["pixel_values"][where] = float("nan")
    broken = type(data["train"]).from_dict(rows, features=data["train"].features).with_format("torch")
    before = cases.snapshot(one_task)
    forgetter = cases.make_forgetter(base, one_task, broken, eval_dataset=data["test"])
    with pytest.raises(NonFiniteLossError, match=f"{half} half"):
        forgetter.forget(ForgetRequest([forgotten]))
    assert is_bare(forgetter.model, base, one_task)
    after = cases.snapshot(one_task)
    assert {path: content for path, content in after.items() if not path.startswith("work/")} == before
    assert any(path.startswith("work/task_002/last-good/") for path in after)
    assert len(forgetter.ledger.tasks) == 1
    forgetter = cases.make_forgetter(base, one_task, data)
    assert forgetter.forget(ForgetRequest([forgotten])).name == "task_002"


@pytest.mark.parametrize(
    "name",
    ["request.json", "adapter_model.safetensors", "adapter_config.json", "gs_lora_config.json", "forgetting.json"],
)
def test_a_full_disk(base, data, one_task, monkeypatch, name):
    """Whichever file cannot be written: the old ones stay byte for byte, and with space again the request works."""
    forgetter = cases.make_forgetter(base, one_task, data)
    before = cases.snapshot(one_task)
    with full_disk(monkeypatch, name), pytest.raises(OSError) as caught:
        forgetter.forget(ForgetRequest([2]))
    assert (caught.value.errno, os.path.basename(caught.value.filename)) == (errno.ENOSPC, name)
    assert before.items() <= cases.snapshot(one_task).items()
    assert not list(one_task.rglob(".staging-*"))
    assert (one_task / "work").exists() == (name != "request.json")
    assert is_bare(forgetter.model, base, one_task)
    assert [entry.name for entry in forgetter.ledger.tasks] == ["task_001"]
    assert forgetter.forget(ForgetRequest([2])).name == "task_002"
    assert cases.make_forgetter(base, one_task, data).ledger.to_dict() == forgetter.ledger.to_dict()
    assert is_bare(forgetter.model, base, one_task)


class Limited(TrainerCallback):
    """Lets files grow to so many bytes only, after one step: to the libraries it is as if the disk were full."""

    def __init__(self, step, most):
        self.step, self.most = step, most

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.skipif(resource is None, reason="needs limits of a process")
@pytest.mark.parametrize(
    ("step", "most"), [(4, 10), (4, 2000), (8, 10_000)], ids=["its state", "its adapter", "its optimizer"]
)
def test_a_checkpoint_that_cannot_be_written(base, data, one_task, step, most):
    """Whichever library meets the limit: one kind of error with the path, nothing half-written, no empty folder."""
    forgetter = cases.make_forgetter(base, one_task, data, callbacks=[Limited(step, most)])
    before, limits = cases.snapshot(one_task), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError) as caught:
            forgetter.forget(ForgetRequest([2]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    work = one_task / "work" / "task_002"
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(work / f"checkpoint-{step}"))
    assert not (work / f"checkpoint-{step}").exists()
    assert work.parent.exists() == (step == 8)  # then there is one to go on from
    assert before.items() <= cases.snapshot(one_task).items()
    assert is_bare(forgetter.model, base, one_task)
    forgetter.recipe.callbacks = [counting := Breaks(0)]
    assert forgetter.forget(ForgetRequest([2])).name == "task_002"
    assert counting.steps[0] == step - 3


def test_other_errors_at_a_checkpoint_stay_what_they_are(base, data, one_task, monkeypatch):
    """Only errors of writing are reported as such."""

    def broken(*args):
        raise cases.OnPurposeError

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", broken)
    with pytest.raises(cases.OnPurposeError):
        cases.make_forgetter(base, one_task, data).forget(ForgetRequest([2]))


def test_giving_up_a_task_that_only_the_ledger_lacks(base, data, one_task, monkeypatch):
    """Files of a task that never got into the ledger go with the request when it is given up."""
    forgetter = cases.make_forgetter(base, one_task, data)
    before = cases.snapshot(one_task)
    with full_disk(monkeypatch, "forgetting.json"), pytest.raises(OSError) as caught:
        forgetter.forget(ForgetRequest([2]))
    assert caught.value.errno == errno.ENOSPC
    assert (one_task / "tasks" / "task_002").exists()
    forgetter.discard_unfinished()
    assert cases.snapshot(one_task) == before
    assert not (one_task / "tasks" / "task_002").exists()


def test_the_time_of_the_first_asking_is_kept(base, data, tmp_path):
    """A request that is asked for again after an interruption was still asked for when it was asked for."""
    breaks = Breaks(5, error=KeyboardInterrupt)
    forgetter = cases.make_forgetter(base, tmp_path, data, callbacks=[breaks])
    with pytest.raises(KeyboardInterrupt):
        forgetter.forget(ForgetRequest([2], requested_at="2025-01-31T12:00:00Z"))
    breaks.armed = False
    entry = forgetter.forget(ForgetRequest([2], note="again"))
    assert entry.request == {"classes": [2], "requested_at": "2025-01-31T12:00:00Z", "note": "again"}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_error_while_scoring(base, data, one_task, monkeypatch, call):
    """Scores are taken of the base, before and after training; an error in any of them leaves everything as it was."""
    predict, calls = scoring.predict, []

    def fails(*args):
        calls.append(1)
        if len(calls) == call:
            raise cases.OnPurposeError
        return predict(*args)

    forgetter = cases.make_forgetter(base, one_task, data)
    before = cases.snapshot(one_task)
    monkeypatch.setattr(scoring, "predict", fails)
    with pytest.raises(cases.OnPurposeError):
        forgetter.forget(ForgetRequest([2]))
    monkeypatch.undo()
    assert before.items() <= cases.snapshot(one_task).items()
    assert is_bare(forgetter.model, base, one_task)
    assert forgetter.forget(ForgetRequest([2])).name == "task_002"
    assert is_bare(forgetter.model, base, one_task)


def test_a_trainer_that_cannot_be_made(base, data, one_task):
    """Settings that the trainer refuses leave no trace of the request."""
    args = cases.make_args(eval_strategy="epoch")
    forgetter = cases.make_forgetter(base, one_task, data, args=args)
    before = cases.snapshot(one_task)
    with refused("eval_strategy"):
        forgetter.forget(ForgetRequest([2]))
    assert cases.snapshot(one_task) == before
    assert not (one_task / "work").exists()
    assert is_bare(forgetter.model, base, one_task)


# What a checkpoint must have to be gone on from


@pytest.fixture(scope="module")
def stopped(base, data, tmp_path_factory):
    """A run stopped at step 9, with checkpoints at 4 and 8."""
    folder = tmp_path_factory.mktemp("stopped")
    forgetter = cases.make_forgetter(base, folder, data, callbacks=[Breaks(9, error=KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        forgetter.forget(cases.requests()[0])
    return folder / "work" / "task_001"


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_what_is_under_way_is_for_its_owner_alone(stopped):
    """The folder of an unfinished request names classes: nobody else may look into it."""
    assert stopped.parent.stat().st_mode & 0o777 == 0o700
    assert (stopped / "request.json").stat().st_mode & 0o777 == 0o600


def test_only_whole_checkpoints_are_gone_on_from(stopped):
    """Whatever is missing or cut off, the last whole checkpoint is taken, and none if there is none."""
    plan = json.loads((stopped / "request.json").read_text())
    last = stopped / "checkpoint-8"
    assert Workspace(stopped).find_start(plan).checkpoint == str(last)
    names = [
        "trainer_state.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "task_001/adapter_model.safetensors",
    ]
    for path in (last / name for name in names):
        content = path.read_bytes()
        for damaged in (None, b"", content[: len(content) // 2], content[:-1]):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            if path.suffix == ".json" and damaged == content[:-1]:
                continue  # all but a line break
            assert Workspace(stopped).find_start(plan).checkpoint == str(stopped / "checkpoint-4"), (path, damaged)
        path.write_bytes(content)
    assert Workspace(stopped).find_start(plan).checkpoint == str(last)
    for checkpoint in ("checkpoint-8", "checkpoint-4"):
        (stopped / checkpoint / "trainer_state.json").rename(stopped / checkpoint / "gone")
    assert Workspace(stopped).find_start(plan).checkpoint is None
    for checkpoint in ("checkpoint-8", "checkpoint-4"):
        (stopped / checkpoint / "gone").rename(stopped / checkpoint / "trainer_state.json")


def test_a_damaged_request_file(stopped):
    """What is unfinished is not guessed: a damaged note of it is an error that says how to go on."""
    path = stopped / "request.json"
    content = path.read_bytes()
    for damaged in (b"", content[:50], b"[]", b"{}", b'{"classes": 1, "request": 2, "started_at": 3}'):
        path.write_bytes(damaged)
        with pytest.raises(UnfinishedRequestError) as error:
            Workspace(stopped).find_start(json.loads(content))
        assert (error.value.path, error.value.differences) == (path, {})
    path.write_bytes(content)


def test_a_number_of_processes_that_changed(stopped):
    """The batches of a checkpoint belong to the number of processes; another one is not passed over in silence."""
    plan = json.loads((stopped / "request.json").read_text())
    plan["settings"]["training"]["num_processes"] = 2
    with pytest.raises(UnfinishedRequestError) as error:
        Workspace(stopped).find_start(plan)
    assert error.value.differences == {"num_processes": (1, 2)}


def test_the_public_methods_are_the_documented_ones():
    """The face of the class is small, and stays so."""
    public = [name for name in dir(ContinualForgetter) if not name.startswith("_")]
    assert sorted(public) == ["check", "discard_unfinished", "forget", "from_hub", "redo", "revoke", "run"]
