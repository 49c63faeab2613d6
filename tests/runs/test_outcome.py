"""Whether a request forgot: the target, the verdict in the ledger, and that no reader is left in doubt."""

import dataclasses
import logging
import shutil
import warnings

import pytest
import run_cases as cases
from datasets import DatasetDict
from hypothesis import given, strategies as st
from test_forgetter import never_trains

from gs_lora_peft import ForgettingLedger, GSLoraTrainingArguments
from gs_lora_peft.data import evaluation_split
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.ledger import TaskEntry, exit_status, format_table, task_states
from gs_lora_peft.ledger.errors import AlreadyForgottenError, InvalidLedgerError
from gs_lora_peft.ledger.outcome import all_forgotten, outcome_of_task, target_score, updated_outcomes
from gs_lora_peft.ledger.run_table import doubts, not_forgotten, warn_not_forgotten
from gs_lora_peft.runs.validation import train_and_test

BASE = {"fingerprint": "sha256:" + "0" * 64, "num_labels": 10, "model_class": "ViTForImageClassification"}
SCORES = {"data": "test", "before": {"acc_forget": 0.9}, "after": {"acc_forget": 0.0, "acc_retain": 0.9}}


def outcome(forgotten=True, target=0.1, known_before=True, **earlier):
    scored = {name: {"score": score, "forgotten": score <= 0.1} for name, score in earlier.items()}
    return {"forgotten": forgotten, "target": target, "known_before": known_before, "earlier": scored}


def made_up(*changes):
    """A ledger with one task for each dict of fields."""
    ledger = ForgettingLedger("not-used", BASE)
    for number, more in enumerate(changes, start=1):
        values = {
            "name": f"task_{number:03d}",
            "request": {"classes": [number]},
            "classes": [number],
            "class_names": [f"name_{number}"],
            "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T00:01:00Z",
            "scores": SCORES,
        }
        ledger.append(TaskEntry(**{**values, **more}))
    return ledger


# The target


@pytest.mark.parametrize(
    ("allowed", "before", "labels", "expected"),
    [
        ("auto", {"acc_forget": 0.9}, 10, 0.1),
        ("auto", {"acc_forget": 0.9}, 2, 0.5),
        ("auto", {"acc_forget": 0.9}, 1000, 0.05),
        ("auto", {"acc_forget": 0.9}, None, 0.05),
        (0.0, {"acc_forget": 0.9}, 10, 0.0),
        (0.3, {"acc_forget": None}, 10, 0.3),
        ("auto", {"ap_forget": 0.4}, 2, 0.02),
        (0.5, {"ap_forget": 0.4}, 2, 0.2),
        ("auto", {"ap_forget": 0.0}, 2, 0.0),
        ("auto", {"ap_forget": None}, 2, None),
    ],
)
def test_target(allowed, before, labels, expected):
    """An accuracy, at least that of guessing by default; of a detector a share of what there was."""
    assert target_score(allowed, before, labels) == pytest.approx(expected)


@pytest.mark.parametrize("value", [-0.1, 1.1, 5, float("nan"), float("inf")])
def test_a_target_that_is_no_fraction_is_refused(value):
    with pytest.raises(InvalidInputError) as refused:
        GSLoraTrainingArguments("out", max_forget_accuracy=value)
    assert refused.value.name == "max_forget_accuracy"
    assert GSLoraTrainingArguments("out", max_forget_accuracy="0.2").max_forget_accuracy == 0.2


# A run


@pytest.fixture(scope="module")
def weak(base, data, tmp_path_factory):
    """A run with one request that did not forget, for want of training, and what it logged."""
    folder, records = tmp_path_factory.mktemp("weak") / "run", []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("gs_lora_peft").addHandler(handler)
    forgetter = cases.make_forgetter(base, folder, data, args=weakly())
    entry = forgetter.run(cases.requests(["cassowary"]))[0]
    logging.getLogger("gs_lora_peft").removeHandler(handler)
    return folder, entry, [record.getMessage() for record in records]


def weakly(**more):
    return cases.make_args(learning_rate=1e-7, num_train_epochs=1, save_strategy="no", **more)


def test_a_request_that_did_not_forget_says_so_everywhere(weak):
    """Ledger, entry, table, log and exit status agree; the log says what to raise, and names no class."""
    folder, entry, logged = weak
    assert entry.scores["after"]["acc_forget"] > 1 / 6
    assert (entry.forgotten, entry.target) == (False, pytest.approx(1 / 6))
    again = ForgettingLedger.load(folder)
    assert again.tasks[0].outcome == entry.outcome == outcome(False, 1 / 6)
    assert (exit_status(again), all_forgotten(again.tasks)) == (3, False)
    assert "not forgotten" in format_table(again).splitlines()[-3]
    (told,) = [line for line in logged if "task_001 is not forgotten" in line]
    assert "cassowary" not in told
    assert all(name in told for name in ("learning_rate", "forget_bound", 'redo("task_001")', "max_forget_accuracy"))


def test_a_request_that_forgot_says_so_too(finished):
    """The same data and another training: forgotten, status 0, and nothing to remark on that task."""
    ledger = finished[1].ledger
    entry = ledger.tasks[-1]
    assert entry.forgotten is True
    assert entry.scores["after"]["acc_forget"] <= entry.target
    assert entry.outcome["known_before"] is True
    assert set(entry.outcome["earlier"]) == {other.name for other in ledger.tasks[:-1]}
    (of_first,) = ledger.tasks[1].outcome["earlier"].values()
    assert of_first["score"] == ledger.tasks[1].scores["after"]["acc_old"]
    assert not [line for line in not_forgotten(ledger) if line.startswith(entry.name)]


def test_asking_again_points_to_redo(weak, base, data, finished, caplog):
    """The error tells how to carry out the request again, whether it forgot or not; a rerun warns again."""
    forgetter = cases.make_forgetter(base, weak[0], data, args=weakly())
    said = []
    for run, request in ((forgetter, cases.requests(["cassowary"])[0]), (finished[1], cases.requests()[0])):
        with pytest.raises(AlreadyForgottenError) as error:
            run.forget(request)
        assert (error.value.classes, error.value.task) == ([2], "task_001")
        assert 'forgetter.redo("task_001")' in str(error.value)
        said.append("still recognised" in str(error.value))
    assert said == [True, False]
    caplog.clear()
    for _ in range(2):
        forgetter.run(cases.requests(["cassowary"]))
    assert caplog.text.count("task_001 is not forgotten") == 1


def test_the_target_may_change_between_stop_and_go(base, data, tmp_path):
    """It decides nothing about the weights: settings that are recorded, and by which runs are compared, lack it."""
    first, second = (
        cases.make_forgetter(base, tmp_path, data, args=cases.make_args(max_forget_accuracy=allowed))
        for allowed in ("auto", 0.5)
    )
    assert first.recipe.settings() == second.recipe.settings()


def test_without_samples_nothing_is_claimed(base, data, tmp_path, caplog):
    """Without evaluation samples of the classes, the outcome is unknown."""
    test = data["test"].filter(lambda row: row["label"] != 2)
    entry = cases.make_forgetter(base, tmp_path, DatasetDict(train=data["train"], test=test), args=weakly()).forget(
        cases.requests([2])[0]
    )
    assert (entry.forgotten, entry.outcome["known_before"]) == (None, None)
    ledger = ForgettingLedger.load(tmp_path)
    assert (exit_status(ledger), task_states(ledger.tasks)[0].verdict) == (0, "not known")
    assert "not known" in caplog.text


def test_labels_numbered_otherwise_are_noticed_before_training(base, data, tmp_path, caplog):
    """A model that knows nothing of what is to be forgotten: a warning with the causes in the table, and in the log
    without the class."""

    def shifted(rows):
        return {"label": (rows["label"] + 1) % 6}

    wrong = DatasetDict({name: split.map(shifted, batched=True) for name, split in data.items()})
    seen = []

    forgetter = cases.make_forgetter(base, tmp_path, wrong, args=weakly())
    trainer = forgetter.recipe.trainer
    forgetter.recipe.trainer = lambda *args: seen.append(caplog.text) or trainer(*args)
    entry = forgetter.forget(cases.requests([2])[0])
    assert entry.scores["before"]["acc_forget"] <= entry.target
    assert entry.outcome["known_before"] is False
    (line,) = doubts(forgetter.ledger)
    assert "task_001" in line
    assert "cassowary" in line
    before, after = line.split("cassowary")
    assert before in seen[0]
    assert after in seen[0]
    assert "cassowary" not in seen[0]
    assert line in format_table(forgetter.ledger)


# Another target


@pytest.mark.parametrize("keep", [True, False])
def test_another_target_judges_what_is_done(weak, base, data, tmp_path, monkeypatch, caplog, keep):
    """Raised as the warning advises, and lowered again: file, table and status follow, and nothing is trained."""
    folder = shutil.copytree(weak[0], tmp_path / "run")
    never_trains(monkeypatch)
    for allowed, forgotten in ((1.0, True), ("auto", False)):
        caplog.clear()
        forgetter = cases.make_forgetter(base, folder, data, args=weakly(max_forget_accuracy=allowed))
        (entry,) = forgetter.run(cases.requests(["cassowary"]), keep=keep)
        ledger = ForgettingLedger.load(folder)
        assert entry.outcome == ledger.tasks[0].outcome
        assert (entry.forgotten, entry.target) == (forgotten, 1.0 if forgotten else pytest.approx(1 / 6))
        assert exit_status(ledger) == (0 if forgotten else 3)
        assert [record.name.rsplit(".")[-1] for record in caplog.records].count("folder") == 1
        before = cases.snapshot(folder)
        forgetter.run(cases.requests(["cassowary"]), keep=keep)
        assert cases.snapshot(folder) == before
    assert ledger.tasks[0].outcome == weak[1].outcome


def test_a_stricter_target_of_earlier_tasks(base, data, finished, tmp_path, monkeypatch):
    """Each task is judged by the target given for it, where a later one measured it last, too; the rest stays."""
    folder = shutil.copytree(finished[0], tmp_path / "run")
    never_trains(monkeypatch)
    old = ForgettingLedger.load(folder)
    forgetter = cases.make_forgetter(base, folder, data)
    given = [cases.make_args(max_forget_accuracy=allowed) for allowed in (0.0, "auto", 0.5)]
    first, second, third = forgetter.run(cases.requests(), args=given)
    assert [entry.target for entry in (first, second, third)] == [0.0, old.tasks[1].target, 0.5]
    for entry, was in zip((first, second, third), old.tasks, strict=True):
        assert entry.forgotten is (entry.scores["after"]["acc_forget"] <= entry.target)
        assert dataclasses.replace(entry, outcome=None) == dataclasses.replace(was, outcome=None)
    for name, found in third.outcome["earlier"].items():
        target = {"task_001": 0.0, "task_002": second.target}[name]
        assert found == {**old.tasks[2].outcome["earlier"][name], "forgotten": found["score"] <= target}


@given(
    scores=st.lists(st.floats(0, 1) | st.none(), min_size=3, max_size=3),
    again=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    targets=st.lists(st.just("auto") | st.floats(0, 1), min_size=2, max_size=2),
    detector=st.booleans(),
)
def test_judging_anew_is_judging(scores, again, targets, detector):
    """Whatever the scores and both targets are, the new outcomes are those that the new target gave from the start."""
    key = "ap_forget" if detector else "acc_forget"

    def judged(allowed):
        tasks = []
        for number, after in enumerate(scores, start=1):
            earlier = {f"task_{other:03d}": again[other - 1] for other in range(1, number)}
            scored = {"before": {key: 0.9}, "after": {key: after}}
            found = outcome_of_task(allowed, scored["before"], scored["after"], earlier, made_up(*tasks))
            tasks.append({"scores": scored, "outcome": found})
        return made_up(*tasks)

    first, expected = (judged(allowed) for allowed in targets)
    changes = updated_outcomes(first, {entry.name: targets[1] for entry in first.tasks})
    first.record_outcomes(changes)
    assert first.to_dict() == expected.to_dict()
    assert updated_outcomes(first, {entry.name: targets[1] for entry in first.tasks}) == {}


def test_old_ledgers_are_not_judged():
    """What was made before outcomes were recorded stays as it was."""
    assert updated_outcomes(made_up({}), {"task_001": 0.5}) == {}


# What is made of it


def test_classes_that_came_back():
    """Whose classes are recognised again is said, as the last task in effect measured it."""
    back = {"outcome": outcome(task_001=0.4, task_002=0.0)}
    ledger = made_up({"outcome": outcome()}, {"outcome": outcome(task_001=0.05)}, back)
    first, second, third = task_states(ledger.tasks)
    assert (first.forgotten, first.came_back, first.score, first.measured_after) == (False, True, 0.4, "task_003")
    assert second.forgotten is third.forgotten is True
    assert exit_status(ledger) == 3
    (line,) = not_forgotten(ledger)
    assert line.startswith("task_001 came back: after task_003, 40 % of the images of name_1 ")
    assert "name_1" not in not_forgotten(ledger, withheld=True)[0]
    assert [line.rsplit(None, 2)[-1] for line in format_table(ledger).splitlines()[2:5]] == [
        "back",
        *["forgotten"] * 2,
    ]
    ledger.revoke("task_003")  # what brought them back is gone
    assert exit_status(ledger) == 0
    ledger.revoke("task_001")
    assert [state.entry.name for state in task_states(ledger.tasks)] == ["task_002"]


def test_ledgers_from_before_outcomes():
    """They load and are written as they were; nothing is claimed, and later tasks still judge the earlier ones."""
    old = made_up({})
    assert "outcome" not in old.tasks[0].to_dict()
    assert (exit_status(old), all_forgotten(old.tasks), not_forgotten(old), doubts(old)) == (0, None, [], [])
    assert "outcome" not in format_table(old)
    gone_on = made_up({}, {"outcome": outcome(task_001=0.3)})
    assert exit_status(gone_on) == 3
    assert task_states(gone_on.tasks)[0].came_back


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"forgotten": "yes"},
        {"target": 2},
        {"target": True},
        {"known_before": 1},
        {"earlier": []},
        {"earlier": {"task_001": 0.5}},
        {"earlier": {"task_001": {"score": "0.5"}}},
    ],
)
def test_an_outcome_that_is_none_is_refused(wrong):
    with pytest.raises(InvalidLedgerError) as error:
        made_up({"outcome": wrong})
    assert error.value.name.startswith("task_001.outcome")


@given(score=st.floats(0.1, 1, exclude_min=True), target=st.just(0.1), detector=st.booleans())
def test_the_sentence_never_contradicts_the_verdict(score, target, detector):
    """However close score and target are, what is shown of both does not look as if the target had been met."""
    key = "ap_forget" if detector else "acc_forget"
    scores = {"before": {key: 1.0}, "after": {key: score}}
    (line,) = not_forgotten(made_up({"scores": scores, "outcome": outcome(False, target)}))
    shown = line.split(" %")[0].split()
    assert float(shown[-1]) > 10 or "more than 10" in line
    assert ("average precision" in line) == detector


def test_many_names_are_cut_short():
    names = [f"name_{number}" for number in range(2, 14)]
    more = {"classes": [*range(2, 10), 0, 1], "class_names": names[:10], "outcome": outcome(False)}
    (line,) = not_forgotten(made_up({**more, "scores": {"after": {"acc_forget": 0.7}}}))
    assert "70 % of the images of name_2, name_3, name_4 and 7 others " in line


def test_who_hands_a_run_out_is_warned():
    """Of tasks that are handed out, without a name."""
    ledger = made_up({"outcome": outcome()}, {"outcome": outcome(False)})
    with pytest.warns(UserWarning, match="task_002 is not forgotten") as told:
        warn_not_forgotten(ledger)
    assert "name_2" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_not_forgotten(ledger, 1)


# The data that is scored on


@pytest.mark.parametrize("name", ["test", "validation", "valid", "val", "evaluation", "eval", "dev", "Test"])
def test_splits_that_are_scored_on(data, name, caplog):
    """Every usual name of a split counts, so that no scores are taken on training data beside it."""
    train, test, title = train_and_test(DatasetDict({"train": data["train"], name: data["test"]}), None)
    assert (train is data["train"], test is data["test"], title) == (True, True, name.lower())
    plain = {"train": data["train"], name: data["test"]}
    assert train_and_test(plain, None) == (data["train"], data["test"], name.lower())
    assert evaluation_split([name, "train", "unlabelled"]) == name
    assert evaluation_split(["dev", name]) == name
    assert not caplog.text


@pytest.mark.parametrize("wrong", [None, [1], {}, {"test": 1}, {"train": [1]}, {"train": {}}])
def test_what_is_no_data_set_is_refused(wrong):
    """Before anything is looked for in it."""
    with pytest.raises(InvalidInputError) as error:
        train_and_test(wrong, None)
    assert error.value.name.rpartition(": ")[2] == "dataset"


def test_training_data_under_any_name_is_told(data, caplog):
    """Scores on training data are warned of, in log and table, also where it was given as test data."""
    train = data["train"]
    alike = DatasetDict(train=train, test=train).rename_column("label", "class")  # another object with the same rows
    for dataset, evaluation in (
        (train, None),
        (DatasetDict(train=train, unlabelled=data["test"]), None),
        (alike, None),
        (train, train),
    ):
        caplog.clear()
        assert train_and_test(dataset, evaluation)[2] == "train"
        assert "measured on the training data" in caplog.text
    ledger = made_up({"scores": {**SCORES, "data": "train"}, "outcome": outcome()})
    (line,) = doubts(ledger)
    assert "task_001" in line
    assert line in format_table(ledger)
