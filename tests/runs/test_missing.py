"""Classes to keep without training data, and few shots, through a whole run: data, scores, ledger, table."""

import json

import pytest
import run_cases as cases
from datasets import DatasetDict
from errors import refused

from gs_lora_peft import ForgetRequest, ForgettingLedger
from gs_lora_peft.data.classes import UnknownClassError
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.hub.withhold import withheld_ledger
from gs_lora_peft.ledger import TaskEntry, format_table
from gs_lora_peft.ledger.errors import InvalidLedgerError


@pytest.fixture(scope="module")
def run(base, data, tmp_path_factory):
    """Two requests, 3 shots, one class missing, prototypes and an average on. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("missing") / "run"
    args = cases.make_args(
        prototype_retain_weight=0.1, prototype_augmentations=1, ema_decay=0.5, ema_update="step", save_strategy="no"
    )
    forgetter = cases.make_forgetter(
        base, folder, data, args=args, shots=3, missing_classes=["flamingo"], augment=lambda image: image * 1.1
    )
    forgetter.run(cases.requests(["cassowary"], ["aardvark"]))
    return folder, forgetter


def test_the_data_of_missing_classes_is_not_used(run):
    """3 samples of each class to forget and of each other class; none of the missing one."""
    folder, _ = run
    first, second = ForgettingLedger.load(folder).tasks
    assert (first.sizes["forget"], first.sizes["retain"]) == (3, 3 * 4)
    assert (second.sizes["forget"], second.sizes["retain"]) == (3, 3 * 3)


def test_scores_before_and_after_are_in_the_ledger(run, data):
    """Acc_m of the base model, before and after each task, on the rows of that class alone."""
    folder, forgetter = run
    entries = ForgettingLedger.load(folder).tasks
    for entry in entries:
        assert entry.missing_classes == [5]
        assert entry.scores["before"]["n_missing"] == 5
        assert entry.scores["before"]["n_retain"] == 5 * (4 if entry.name == "task_001" else 3)
        assert entry.scores["base"]["acc_missing"] > 0.5
    rows = data["test"].filter(lambda label: label == 5, input_columns="label")[:]
    hits = forgetter.model(rows["pixel_values"]).logits.argmax(-1) == rows["label"]
    assert entries[-1].scores["after"]["acc_missing"] == pytest.approx(hits.float().mean().item())
    assert entries[1].scores["before"]["acc_missing"] == entries[0].scores["after"]["acc_missing"]


def test_scored_classes_without_training_data_are_missing(base, data, tmp_path):
    """A class that the test data have and the training data lack is kept without data, although nobody said so."""
    train = data["train"].filter(lambda label: label not in (1, 5), input_columns="label")
    partial = DatasetDict(train=train, test=data["test"])
    forgetter = cases.make_forgetter(base, tmp_path, partial, args=cases.make_args(max_steps=2), missing_classes=[5])
    entry = forgetter.forget(ForgetRequest(["cassowary"]))
    assert entry.missing_classes == [1, 5]
    assert entry.scores["after"]["n_missing"] == 10
    assert entry.scores["after"]["n_retain"] == 15


def test_the_settings_are_recorded(run):
    """What was trained with can be read from the ledger."""
    settings = ForgettingLedger.load(run[0]).tasks[0].settings
    assert settings["data"]["shots"] == 3
    assert settings["training"]["prototype_retain_weight"] == 0.1
    assert settings["training"]["ema_update"] == "step"


def test_the_table_shows_missing_classes_only_where_there_are_any(run, finished):
    """Two more columns, which runs without missing classes do not have."""
    header, _, first, *_ = format_table(ForgettingLedger.load(run[0])).splitlines()[2:]
    after = ForgettingLedger.load(run[0]).tasks[0].scores["after"]["acc_missing"]
    assert "Acc_m before  Acc_m" in header
    at = header.index("Acc_m  ")
    assert first[at : at + 6].strip() == f"{100 * after:.1f}"
    assert "Acc_m" not in format_table(ForgettingLedger.load(finished[0]))


def test_old_ledgers_load_and_stay_as_they_are(finished):
    """An entry without missing classes has no such key, so that ledgers written before are the same bytes."""
    entries = json.loads((finished[0] / "forgetting.json").read_text())["tasks"]
    assert not any("missing_classes" in entry for entry in entries)
    assert all(TaskEntry.from_dict(entry).missing_classes is None for entry in entries)


def test_a_withheld_ledger_does_not_name_missing_classes(run, tmp_path):
    """Who was kept narrows down who was forgotten."""
    withheld = withheld_ledger(ForgettingLedger.load(run[0]), b"0" * 32, tmp_path)
    assert all(entry.missing_classes is None for entry in withheld.tasks)
    assert "missing_classes" not in json.dumps(withheld.to_dict())
    assert "Acc_m" in format_table(withheld)


def test_a_missing_class_cannot_be_forgotten_until_it_is_taken_off_the_list(base, data, tmp_path):
    """Forgetting needs its data: an error before anything is touched, and the fix works."""
    forgetter = cases.make_forgetter(base, tmp_path / "run", data, missing_classes=[5, "aardvark"])
    with refused("forget", [5]):
        forgetter.forget(ForgetRequest(["flamingo"]))
    assert not (tmp_path / "run" / "forgetting.json").exists()
    forgetter.recipe.missing_classes = ["aardvark"]
    entry = forgetter.forget(ForgetRequest(["flamingo"]))
    assert (entry.classes, entry.missing_classes) == ([5], [0])
    with refused("missing_classes", ["flamingo"]):
        cases.make_forgetter(base, tmp_path / "run", data, missing_classes=["flamingo"])


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (["unicorn"], UnknownClassError),
        ([6], UnknownClassError),
        ([5, "flamingo"], InvalidInputError),
        ("flamingo", InvalidInputError),
    ],
)
def test_bad_lists_are_refused_at_once(base, data, tmp_path, classes, kind):
    """When the run is opened, not at the first request."""
    with refused("missing_classes", classes, kind):
        cases.make_forgetter(base, tmp_path, data, missing_classes=classes)


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [({"shots": 13}, "shots", 13), ({"missing_classes": [0, 1, 3, 4, 5]}, "retain", [])],
)
def test_what_the_data_cannot_give_is_refused_before_training(base, data, tmp_path, settings, name, value):
    """Fewer rows than shots, or nobody left to replay: nothing is written."""
    forgetter = cases.make_forgetter(base, tmp_path / "run", data, **settings)
    with refused(name, value):
        forgetter.forget(ForgetRequest(["cassowary"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", [[-1], [1, 1], [2], "5", [99]])
def test_an_entry_with_impossible_missing_classes_is_refused(run, missing):
    """No ids, one twice, one that was forgotten, or one beyond the head."""
    ledger = ForgettingLedger.load(run[0])
    data = ledger.tasks[0].to_dict() | {"missing_classes": missing}
    with pytest.raises(InvalidLedgerError) as error:
        ForgettingLedger(run[0], ledger.base_model, ledger.label_names, [TaskEntry.from_dict(data)])
    assert error.value.name.startswith("task_001.missing_classes")
