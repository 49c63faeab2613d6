"""A run's folder that is used again: with other settings, after a revocation, to carry a request out once more."""

import dataclasses
import functools
import logging
import os
import re
import shutil
import signal

import pytest
import run_cases as cases
from errors import refused
from hypothesis import given, strategies as st
from test_failed import Breaks
from test_forgetter import Seen, never_trains
from test_killed import KilledAt, deadly, in_child, is_ledger, needs_fork
from transformers import ViTImageProcessor

from gs_lora_peft import ForgetRequest, GSLoraConfig, LedgerError, NoStepError, OtherSettingsError, load_forgotten
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.ledger import ForgettingLedger, TaskEntry
from gs_lora_peft.ledger.errors import InvalidLedgerError, LaterTasksError, RequestOrderError, UnfinishedRequestError
from gs_lora_peft.runs.recipe import Recipe
from gs_lora_peft.runs.settings import changed_settings
from gs_lora_peft.runs.validation import match_requests
from gs_lora_peft.runs.workspace import _differences
from gs_lora_peft.training import ForgettingTrainer

TASKS = ["task_001", "task_002", "task_003"]


def other_rows(data, part):
    """The data with one row less in one part."""
    return type(data)({**data, part: data[part].select(range(1, len(data[part])))})


# Other settings

OTHERS = {
    "learning_rate": {"args": {"learning_rate": 0.01}},
    "seed": {"args": {"seed": 3}},
    "forget_weight": {"args": {"forget_weight": 0.1}},
    "num_train_epochs": {"args": {"num_train_epochs": 2}},
    "per_device_train_batch_size": {"args": {"per_device_train_batch_size": 8}},
    "data_seed": {"args": {"data_seed": 3}},
    "r": {"config": GSLoraConfig(r=2, lora_alpha=4)},
    "target_modules": {"config": GSLoraConfig(r=4, lora_alpha=4, target_modules="attention")},
    "replay_ratio": {"replay_ratio": 0.5},
    "shots": {"shots": 2},
    "missing_classes": {"missing_classes": ["bumblebee"]},
    "train_data": {"data": "train"},
    "evaluation_data": {"data": "test"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_said_and_refused(base, data, finished, monkeypatch, name):
    """Whichever setting differs, it is named for each task, and nothing happens; unless what is done is to be kept."""
    never_trains(monkeypatch)
    more = dict(OTHERS[name])
    given_data = other_rows(data, more.pop("data")) if "data" in more else data
    args = cases.make_args(**more.pop("args", {}))
    forgetter = cases.make_forgetter(base, finished[0], given_data, args=args, **more)
    before = cases.snapshot(finished[0])
    with pytest.raises(OtherSettingsError) as caught:
        forgetter.run(cases.requests())
    assert {task: list(found) for task, found in caught.value.differences.items()} == {task: [name] for task in TASKS}
    was, now = caught.value.differences["task_002"][name]
    assert was != now
    assert isinstance(caught.value, LedgerError)
    assert [entry.name for entry in forgetter.run(cases.requests(), keep=True)] == TASKS
    assert cases.snapshot(finished[0]) == before


@pytest.mark.parametrize("differing", [TASKS[:1], TASKS[1:2], TASKS[2:], [TASKS[0], TASKS[2]], TASKS])
def test_the_advice_fits_the_tasks_that_differ(base, data, finished, monkeypatch, differing):
    """It begins with the first task that differs: later ones are revoked, in Python or on the command line."""
    never_trains(monkeypatch)
    forgetter = cases.make_forgetter(base, finished[0], data)
    args = [cases.make_args(**({"seed": 3} if name in differing else {})) for name in TASKS]
    with pytest.raises(OtherSettingsError) as caught:
        forgetter.run(cases.requests(), args=args)
    assert list(caught.value.differences) == differing
    lines = str(caught.value).splitlines()
    assert all(line.endswith(".") for line in lines[1:])  # they may be joined into one line
    later = TASKS[TASKS.index(differing[0]) + 1 :]
    assert re.findall(r"re(?:do|voke)\('(\w+)'\)", lines[-1]) == [*later[::-1], differing[0]]
    assert re.findall(rf"gs-lora revoke {finished[0]} (\w+)", lines[-1]) == later[::-1]
    if later:
        with pytest.raises(LedgerError) as refused:
            forgetter.redo(differing[0])
        assert re.findall(rf"gs-lora revoke {finished[0]} (\w+)", str(refused.value)) == later[::-1]


@pytest.mark.parametrize(
    "args",
    [
        {"output_dir": "elsewhere", "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
        {"data_seed": 42},
        {"dataloader_num_workers": 1, "per_device_eval_batch_size": 3},
    ],
)
def test_what_cannot_change_the_result_does_not_count(base, data, finished, monkeypatch, args):
    """Folders, logs, checkpoints, workers and the seed said twice do not count, nor does the order of test rows."""
    never_trains(monkeypatch)
    shuffled = type(data)({**data, "test": data["test"].shuffle(seed=1)})
    forgetter = cases.make_forgetter(base, finished[0], shuffled, args=cases.make_args(**args))
    assert [entry.name for entry in forgetter.run(cases.requests())] == TASKS


BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "h_mean",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
}

SETTINGS = {
    "config": {"r": 4, "target_modules": ["fc1", "fc2"]},
    "training": {"per_device_train_batch_size": 4, "num_processes": 2, "seed": 1, "data_seed": None},
    "data": {"shots": None, "train_data": "72 rows"},
}


def entry(settings, **more):
    return TaskEntry("task_001", {}, [2], "2025-01-31T12:00:00Z", "2025-01-31T12:00:00Z", settings=settings, **more)


@pytest.mark.parametrize(
    ("part", "given", "expected"),
    [
        ("training", {"per_device_train_batch_size": 8, "num_processes": 1}, set()),
        ("training", {"per_device_train_batch_size": 8}, {"per_device_train_batch_size"}),
        ("training", {"num_processes": 1}, {"num_processes"}),
        ("config", {"target_modules": ["fc2", "fc1"]}, set()),
        ("config", {"target_modules": ["fc2"]}, {"target_modules"}),
        ("training", {"data_seed": 1}, set()),
        ("training", {"new_in_this_version": 3}, set()),
        ("data", {"train_data": "71 rows"}, {"train_data"}),
    ],
)
def test_which_differences_count(part, given, expected):
    """A batch of all processes together, module names in any order; what only one version knows is not compared."""
    settings = {**SETTINGS, part: {**SETTINGS[part], **given}}
    assert set(changed_settings(entry(SETTINGS), settings)) == expected


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [
        ({}, {"neftune_noise_alpha": 5.0}, {"neftune_noise_alpha"}),
        ({"neftune_noise_alpha": 5.0}, {}, {"neftune_noise_alpha"}),
        ({}, {"optim_target_modules": ["fc1"]}, {"optim_target_modules"}),
        ({}, {"auto_find_batch_size": True}, {"auto_find_batch_size"}),
        ({}, {"accelerator_config": {"split_batches": True}}, {"split_batches"}),
        ({}, {"gradient_checkpointing": True, "full_determinism": False, "eval_delay": 1}, set()),
        (BEST, {**BEST, "eval_steps": 8, "save_steps": 8}, {"eval_steps", "save_steps"}),
        (BEST, {**BEST, "eval_delay": 1}, {"eval_delay"}),
    ],
)
def test_inherited_options_that_change_the_weights_count(before, given, expected):
    """Noise, what an optimizer works on, the size of a batch, and where the best weights are looked for."""
    was, now = (
        Recipe(GSLoraConfig(), cases.make_args(**options), "label", None, print).settings()
        for options in (before, given)
    )
    assert changed_settings(entry(was), now).keys() == expected
    for name in expected:
        del was["training"][name]
    assert not changed_settings(entry(was), now)  # a ledger of a former version


def test_a_request_that_a_former_version_began():
    """What one version alone records is no other setting: the request goes on."""
    now = {"settings": {"training": {"learning_rate": 0.1, "split_batches": False}}}
    was = {"settings": {"training": {"learning_rate": 0.1, "forget_weight": 3.0}}}
    assert not _differences(was, now)
    was["settings"]["training"]["learning_rate"] = 0.2
    assert _differences(was, now) == {"learning_rate": (0.2, 0.1)}


@pytest.mark.parametrize("recorded", [{}, {"data": None, "training": []}, {"data": {"shots": None}}])
def test_ledgers_that_record_less(recorded):
    """A ledger of an earlier version, or one without settings, gives no cause for complaint."""
    assert changed_settings(entry(recorded), SETTINGS, missing=[3]) == {}


def test_a_missing_class_that_is_forgotten_later(base, data, tmp_path):
    """It must leave `missing_classes` for that, which makes no other settings of the earlier tasks."""
    forgetter = cases.make_forgetter(base, tmp_path, data, missing_classes=["bumblebee"])
    forgetter.run(cases.requests(["cassowary"]))
    for _ in range(2):
        forgetter = cases.make_forgetter(base, tmp_path, data)
        assert len(forgetter.run(cases.requests(["cassowary"], ["bumblebee"]))) == 2


def test_new_requests_take_the_new_settings(base, data, one_task):
    """`forget` never complains, nor does `run` that is to keep what is done; both train with what is given now."""
    forgetter = cases.make_forgetter(base, one_task, data, args=cases.make_args(learning_rate=0.04))
    forgetter.forget(ForgetRequest([2]))
    forgetter.run(cases.requests(["bumblebee"], [2], [3]), keep=True)
    rates = [task.settings["training"]["learning_rate"] for task in forgetter.ledger.tasks]
    assert rates == [0.05, 0.04, 0.04]


def test_arguments_of_each_request(base, data, tmp_path, monkeypatch):
    """Every request is trained by its own arguments and compared with them; the recipe's are as before."""
    args = [cases.make_args(forget_weight=weight) for weight in (0.5, 0.3)]
    requests = cases.requests(["cassowary"], ["aardvark"])
    forgetter = cases.make_forgetter(base, tmp_path, data)
    own = forgetter.recipe.args
    forgetter.run(requests, args=args)
    assert forgetter.recipe.args is own
    assert [task.settings["training"]["forget_weight"] for task in forgetter.ledger.tasks] == [0.5, 0.3]
    never_trains(monkeypatch)
    assert len(forgetter.run(requests, args=args)) == 2
    with pytest.raises(OtherSettingsError) as caught:
        forgetter.run(requests)
    assert caught.value.differences == {"task_002": {"forget_weight": (0.3, 0.5)}}
    with pytest.raises(InvalidInputError) as wrong:
        forgetter.run(requests, args=args[:1])
    assert wrong.value.name == "args"


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_an_unfinished_request_and_other_settings(base, data, tmp_path, caplog, strategy):
    """With checkpoints it is refused, unless `keep`; without, it starts again. Both are reported."""
    breaks = Breaks(5, error=KeyboardInterrupt)
    args = cases.make_args(save_strategy=strategy)
    with pytest.raises(KeyboardInterrupt):
        cases.make_forgetter(base, tmp_path, data, args=args, callbacks=[breaks]).run(cases.requests())
    seen = Seen()
    args = cases.make_args(save_strategy=strategy, learning_rate=0.04)
    forgetter = cases.make_forgetter(base, tmp_path, data, args=args, callbacks=[seen])
    if strategy == "steps":
        before = cases.snapshot(tmp_path)
        with pytest.raises(UnfinishedRequestError) as error:
            forgetter.run(cases.requests(["cassowary"]))
        assert error.value.differences == {"learning_rate": (0.05, 0.04)}
        assert cases.snapshot(tmp_path) == before
    with caplog.at_level(logging.WARNING):
        (done,) = forgetter.run(cases.requests(["cassowary"]), keep=strategy == "steps")
    assert "learning_rate was 0.05 and is 0.04" in caplog.text
    assert seen.steps == done.sizes["steps"] == 12
    assert done.settings["training"]["learning_rate"] == 0.04


# The same requests after a revocation


@pytest.mark.parametrize("revoked", [TASKS[1:2], [TASKS[0], TASKS[2]]])
def test_the_same_requests_after_a_revocation(base, data, finished, tmp_path, monkeypatch, revoked):
    """Whichever task was taken back, also without data as by `gs-lora revoke`: its request comes again, at the end."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    ledger = ForgettingLedger.load(folder)
    with ledger.changes():
        for name in revoked:
            ledger.revoke(name)
    forgetter = cases.make_forgetter(base, folder, data)
    entries = forgetter.run(cases.requests())
    assert [entry.classes for entry in entries] == [[2], [0, 4], [5]]
    new = [f"task_{number:03d}" for number in range(4, 4 + len(revoked))]
    assert [entry.name for entry in forgetter.ledger.active_tasks] == [n for n in TASKS if n not in revoked] + new
    assert cases.same(
        cases.weights(load_forgotten(cases.load_base(base), folder, merge=True)), cases.weights(forgetter.model)
    )
    never_trains(monkeypatch)
    assert cases.make_forgetter(base, folder, data).run(cases.requests()) == entries


@given(st.lists(st.tuples(st.sampled_from(["run", "revoke"]), st.integers(0, 4)), max_size=12))
def test_any_revocations(tmp_path_factory, steps):
    """Whatever was carried out and taken back in between, the same requests bring every class back, each once."""
    folder = tmp_path_factory.getbasetemp() / "none"
    ledger = ForgettingLedger(folder, {"fingerprint": "sha256:" + "0" * 64, "num_labels": 9})
    requests = [ForgetRequest(classes) for classes in ([3], [1, 2], [0], [4, 5], [6])]
    for step, number in [*steps, ("run", 4)]:
        if step == "revoke" and ledger.active_tasks:
            ledger.revoke(ledger.active_tasks[number % len(ledger.active_tasks)].name)
        elif step == "run":
            asked = requests[: max(number + 1, 1 + max((requests_of(ledger, requests)), default=0))]
            for request, found in zip(asked, match_requests(asked, ledger, None), strict=True):
                assert found is None or set(found.classes) == set(request.classes)
                if found is None:
                    new = dataclasses.replace(entry({}), name=ledger.next_task_name(), classes=list(request.classes))
                    ledger.append(new)
    assert sorted(ledger.forgotten_classes) == [0, 1, 2, 3, 4, 5, 6]
    assert None not in match_requests(requests, ledger, None)


def requests_of(ledger, requests):
    """Places of the requests that were ever carried out."""
    seen = [set(task.classes) for task in ledger.tasks]
    return [place for place, request in enumerate(requests) if set(request.classes) in seen]


def test_requests_that_leave_one_out(base, data, finished, monkeypatch):
    """A request that was carried out between those given is not passed over in silence."""
    never_trains(monkeypatch)
    forgetter = cases.make_forgetter(base, finished[0], data)
    for sequence, task in (([["cassowary"], ["flamingo"]], "task_002"), ([["flamingo"]], "task_001")):
        with pytest.raises(RequestOrderError) as error:
            forgetter.run(cases.requests(*sequence))
        assert error.value.task == task


# The last request once more


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def test_redo(base, data, run, monkeypatch):
    """The last request is carried out again with the present settings; the former task stays in ledger and folder."""
    old = ForgettingLedger.load(run).tasks[2]
    forgetter = cases.make_forgetter(base, run, data, args=cases.make_args(learning_rate=0.04))
    entry = forgetter.redo()
    assert (entry.name, entry.classes, entry.request) == ("task_004", old.classes, old.request)
    assert entry.settings["training"]["learning_rate"] == 0.04
    assert entry.scores["before"]["acc_forget"] == old.scores["before"]["acc_forget"]
    ledger = ForgettingLedger.load(run)
    assert [task.name for task in ledger.active_tasks] == ["task_001", "task_002", "task_004"]
    assert ledger.tasks[2].revocation["redone_as"] == "task_004"
    assert ledger.tasks[2].revocation["scores_after"]["acc_revoked"] > 0.5
    assert (run / "tasks/task_003/adapter_model.safetensors").exists()
    assert not (run / "work").exists()
    rebuilt = load_forgotten(cases.load_base(base), run, merge=True)
    assert cases.same(cases.weights(forgetter.model), cases.weights(rebuilt))
    # Given again by its name it is done, and the requests are.
    never_trains(monkeypatch)
    forgetter = cases.make_forgetter(base, run, data, args=cases.make_args(learning_rate=0.04))
    assert forgetter.redo("task_003") == entry
    assert [task.name for task in forgetter.run(cases.requests(), keep=True)] == ["task_001", "task_002", "task_004"]
    monkeypatch.undo()
    forgetter.recipe.args.learning_rate = 0.03
    assert forgetter.redo("task_003").name == "task_005"


def test_redo_with_the_same_settings_gives_the_same_adapter(base, data, run):
    """The model it starts from is the one of then, to the bit."""
    cases.make_forgetter(base, run, data).redo("task_003")
    first, again = (run / "tasks" / name / "adapter_model.safetensors" for name in ("task_003", "task_004"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("task", ["task_001", "task_002", "task_009", "task_000"])
def test_only_the_last_can_be_redone(base, data, finished, monkeypatch, task):
    """Later tasks were trained on top of an earlier one; the error names them, and nothing changes."""
    never_trains(monkeypatch)
    before = cases.snapshot(finished[0])
    forgetter = cases.make_forgetter(base, finished[0], data)
    if task in TASKS:
        with pytest.raises(LaterTasksError) as error:
            forgetter.redo(task)
        assert (error.value.task, error.value.later) == (task, [name for name in TASKS if name > task])
    else:
        with refused("tasks", task, InvalidLedgerError):
            forgetter.redo(task)
    assert cases.snapshot(finished[0]) == before


def test_nothing_to_redo(base, data, tmp_path):
    """Neither in a new folder nor where all was taken back."""
    with refused("task", None, InvalidLedgerError):
        cases.make_forgetter(base, tmp_path, data).redo()
    assert not list(tmp_path.iterdir())


def test_redo_that_breaks_down(base, data, run):
    """After an error the old task is still in effect, in ledger, file and model; the next attempt works."""
    breaks = Breaks(5, "task_004")
    forgetter = cases.make_forgetter(base, run, data, callbacks=[breaks])
    before, state, ledger = cases.snapshot(run), cases.weights(forgetter.model), forgetter.ledger.to_dict()
    with pytest.raises(cases.OnPurposeError):
        forgetter.redo()
    after = cases.snapshot(run)
    assert {path: content for path, content in after.items() if not path.startswith("work/")} == before
    assert forgetter.ledger.to_dict() == ledger
    assert cases.same(cases.weights(forgetter.model), state)
    breaks.armed = False
    assert forgetter.redo().name == "task_004"


MOMENTS = {
    "between two checkpoints": None,
    "before the ledger is moved": lambda: deadly(os, "replace", before=True, of=is_ledger, call=1),
    "after the ledger is moved": lambda: deadly(os, "replace", of=is_ledger, call=1),
}


@needs_fork
@pytest.mark.parametrize("moment", MOMENTS)
def test_redo_that_is_killed(base, data, run, monkeypatch, moment):
    """The same call completes it, from the last checkpoint; until it is in the ledger the old task is in effect."""
    args = cases.make_args(learning_rate=0.04)

    def dies():
        if MOMENTS[moment]:
            MOMENTS[moment]()
        callbacks = [] if MOMENTS[moment] else [KilledAt(5, "task_004")]
        cases.make_forgetter(base, run, data, args=args, callbacks=callbacks).redo("task_003")

    assert in_child(dies) == signal.SIGKILL
    done = moment == "after the ledger is moved"
    in_effect = ForgettingLedger.load(run).active_tasks
    assert [entry.name for entry in in_effect] == [*TASKS[:2], "task_004" if done else "task_003"]
    seen = Seen()
    forgetter = cases.make_forgetter(base, run, data, args=args, callbacks=[seen])
    if moment == "between two checkpoints":  # another request must wait, and the error says for which
        with pytest.raises(UnfinishedRequestError) as error:
            forgetter.forget(ForgetRequest(["bumblebee"]))
        assert error.value.path == run / "work" / "task_004"
        assert "redo('task_003')" in str(error.value)
    assert forgetter.redo("task_003").name == "task_004"
    assert seen.steps == (2 if moment == "between two checkpoints" else 0)  # of 6, of which 4 were saved
    assert [entry.name for entry in forgetter.ledger.tasks] == [*TASKS, "task_004"]
    rebuilt = load_forgotten(cases.load_base(base), run, merge=True)
    assert cases.same(cases.weights(forgetter.model), cases.weights(rebuilt))


# A request that took no step


def test_no_step_no_task(base, data, one_task, monkeypatch):
    """Whatever kept the trainer from training: the request is not recorded, and everything is as before."""
    forgetter = cases.make_forgetter(base, one_task, data)
    before, state = cases.snapshot(one_task), cases.weights(forgetter.model)
    with monkeypatch.context() as patched:
        patched.setattr(ForgettingTrainer, "train", lambda *args, **kwargs: None)
        for action in (lambda: forgetter.forget(ForgetRequest([2])), forgetter.redo):
            with pytest.raises(NoStepError):
                action()
            assert cases.snapshot(one_task) == before
            assert not (one_task / "work").exists()
            assert cases.same(cases.weights(forgetter.model), state)
    assert forgetter.forget(ForgetRequest([2])).name == "task_002"


def flip(image):
    return image


def other_flip(image):
    return image


GIVEN = {"processing_class": ViTImageProcessor(size=8), "augment": flip, "args": {"augmentation": True}}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, set()),
        ({"processing_class": ViTImageProcessor(size=8)}, set()),
        ({"augment": functools.partial(flip)}, set()),
        ({"processing_class": ViTImageProcessor(size=8, image_mean=[0.1])}, {"processor"}),
        ({"processing_class": None}, {"processor"}),
        ({"augment": other_flip}, {"augment"}),
    ],
)
def test_another_processor_or_augmentation_is_told(base, data, tmp_path, changed, expected):
    """They decide what the model sees; ledgers that do not record them are not complained about."""
    settings = []
    for values in (GIVEN, {**GIVEN, **changed}):
        more = {**values, "args": cases.make_args(**values["args"])}
        settings.append(cases.make_forgetter(base, tmp_path / "run", data, **more).recipe.settings())
    assert set(changed_settings(entry(settings[0]), settings[1])) == expected
    for name in ("processor", "augment"):
        del settings[0]["data"][name]
    assert changed_settings(entry(settings[0]), settings[1]) == {}
