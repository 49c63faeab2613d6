"""An audit attacks every model alike, changes none, goes on where it was stopped, and refuses what would mislead."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from errors import refused
from tiny_models import NAMES, model, rows
from transformers import ViTImageProcessor

from gs_lora_peft import ContinualForgetter, ForgetRequest, GSLoraTrainingArguments, audit_models, audit_run
from gs_lora_peft.audit import Attack, AuditReport, Measurement
from gs_lora_peft.ledger import InvalidLedgerError
from gs_lora_peft.methods import get_method


@pytest.fixture(scope="module")
def dataset():
    return DatasetDict(train=rows(48, 0), test=rows(24, 1))


@dataclass(frozen=True, kw_only=True)
class Counted(Attack):
    """Counts its calls, and draws."""

    name = "counted"
    title = "counted"
    knowledge = "none"
    calls = []  # noqa: RUF012

    def run(self, subject, context):
        self.calls.append(subject.name)
        rows = context.draw(2, context.roles.forget, "counted")
        hits = subject.states(context.attacker)["logits"][rows].argmax(1) == context.attacker.labels[rows]
        return [Measurement.of_hits("drawn", hits[None], facts={"random": torch.rand(()).item()})]


@pytest.fixture
def counted():
    Counted.calls.clear()
    return Counted()


def audit(dataset, **options):
    options = {"reference": model(2), "quick": True, "disable_tqdm": True} | options
    return audit_models(model(0), model(1), dataset, [1, 3], **options)


def test_no_model_changes_and_all_have_the_same_figures(dataset):
    models = [model(0), model(1), model(2)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    report = audit_models(models[0], models[1], dataset, [1, 3], reference=models[2], quick=True, disable_tqdm=True)
    for m, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in m.state_dict().items())
        assert not m.training
    for attack in report.attacks:
        if attack.judged != "shown":
            keys = [[found.key for found in listed] for listed in attack.measurements.values()]
            assert keys[0] == keys[1] == keys[2] != []
    assert report.gap.points == max(c.excess for c in report.comparisons() if c.attack.judged != "shown")


def test_the_same_audit_gives_the_same_figures_whatever_ran_before(dataset):
    first = audit(dataset, attacks=["linear_probe", Counted()])
    torch.rand(5)
    second = audit(dataset, attacks=[Counted(), "linear_probe"])
    for name in ("linear_probe", "counted"):
        of_both = [next(a for a in report.attacks if a.name == name).measurements for report in (first, second)]
        assert of_both[0] == of_both[1]


def test_every_model_gets_the_same_draws(dataset, counted):
    audit(dataset, attacks=[counted], reference=[model(2), model(3)])
    assert counted.calls == ["original", "forgotten", "retrained 1", "retrained 2"]
    report = audit(dataset, attacks=[counted])
    (found,) = report.attacks
    assert len({listed[0].facts["random"] for listed in found.measurements.values()}) == 1


def test_a_stopped_audit_goes_on_where_it_was(dataset, counted, tmp_path, monkeypatch):
    own = Counted.run

    def stopped(attack, subject, context):
        if subject.name == "retrained":
            raise KeyboardInterrupt
        return own(attack, subject, context)

    monkeypatch.setattr(Counted, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        audit(dataset, attacks=[counted], folder=tmp_path)
    monkeypatch.undo()
    resumed = audit(dataset, attacks=[counted], folder=tmp_path)
    assert counted.calls == ["original", "forgotten", "retrained"]
    assert resumed.attacks[0].measurements == audit(dataset, attacks=[counted]).attacks[0].measurements


@pytest.mark.parametrize("changed", [{"seed": 1}, {"reference": model(3)}, {"max_samples": 8}])
def test_a_part_of_another_audit_is_not_taken(dataset, counted, tmp_path, changed):
    audit(dataset, attacks=[counted], folder=tmp_path)
    counted.calls.clear()
    audit(dataset, attacks=[counted], folder=tmp_path, **changed)
    assert counted.calls == ["original", "forgotten", "retrained"]


def test_audits_of_several_models_share_the_parts_of_the_others(dataset, counted, tmp_path):
    audit(dataset, attacks=[counted], folder=tmp_path)
    counted.calls.clear()
    audit_models(
        model(0), model(9), dataset, [1, 3], reference=model(2), attacks=[counted], folder=tmp_path, quick=True
    )
    assert counted.calls == ["forgotten"]


def test_without_a_reference_random_weights_are_the_floor_and_the_verdict_says_so(dataset):
    report = audit(dataset, attacks=["answer"], reference=None)
    assert [m.kind for m in report.models] == ["original", "forgotten", "random"]
    assert not report.has_retrained
    assert "random weights" in report.verdict


def test_a_single_data_set_is_split_so_that_nothing_is_judged_on_what_the_attacker_has(dataset):
    report = audit(dataset["train"], attacks=["answer"])
    assert report.facts["samples"] == {"attacker": 24, "judge": 24}


def test_the_report_comes_back_from_its_json(dataset):
    report = audit(dataset, attacks=["answer", "knn"])
    again = AuditReport.from_dict(report.to_dict())
    assert again == report
    assert again.verdict == report.verdict
    with refused("schema", "other"):
        AuditReport.from_dict({"schema": "other"})


def test_no_class_is_named(dataset):
    text = str(audit(dataset).to_dict())
    assert not any(name in text for name in NAMES)


def test_bad_input_is_refused_before_any_attack(dataset, counted):
    cases = [
        ("reference", {"reference": model(2, num_labels=3)}),
        ("reference", {"reference": model(0)}),
        ("reference", {"reference": model(1)}),
        ("reference", {"reference": []}),
        ("reference", {"reference": [model(2), model(2)]}),
        ("attacks", {"attacks": ["detector_answer"]}),
        ("attacks", {"attacks": ["similarity"]}),
        ("attacks", {"attacks": ["nonsense"]}),
    ]
    for name, options in cases:
        with refused(name):
            audit(dataset, **{"attacks": [counted], **options})
    with refused("data", ["train"]):
        audit(DatasetDict(train=dataset["train"]))
    same = dataset["train"]
    for judge in (same, copy.copy(same)):
        with refused("data") as error:
            audit(DatasetDict(train=same, test=judge))
        assert "'test' with the same rows" in error.value.value
    few = dataset["test"].filter(lambda row: row["label"] != 3)
    with refused("classes of the data to judge on"):
        audit(DatasetDict(train=dataset["train"], test=few))
    assert counted.calls == []


@pytest.fixture(scope="module")
def knowing(dataset):
    """A model that was trained on all classes."""
    knowing = model(2)
    pixels, labels = dataset["train"][:]["pixel_values"], dataset["train"][:]["label"]
    optimizer = torch.optim.Adam(knowing.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(knowing(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
    return knowing


def test_a_reference_that_knows_a_forgotten_class_is_refused(dataset, knowing):
    """Beside it everything would look forgotten: it was trained before the last request, say."""
    with refused("reference") as error:
        audit(dataset, reference=knowing)
    assert "--retrain-epochs" in error.value.fix


def test_what_original_and_references_know_is_told_and_warned_of(dataset, knowing, caplog):
    constant = model(2)
    with torch.no_grad():
        constant.classifier.bias[0] = 100.0
    options = {"attacks": ["answer"], "disable_tqdm": True}
    report = audit_models(knowing, model(1), dataset, [1, 3], reference=[constant, model(4)], **options)
    assert report.recognised
    assert report.kept["original"] > 90
    # It gives one answer to all, which is right for one of two kept classes, and names no forgotten one.
    assert report.facts["answers"]["retrained 1"]["kept"] == pytest.approx(50)
    assert report.facts["answers"]["retrained 1"]["forgotten"] == 0
    constant.classifier.bias.data[3] = 200.0
    report = audit_models(knowing, model(1), dataset, [1, 3], reference=constant, **options)
    assert report.kept["references"] == [0]
    assert "right on 0.0 % of the kept samples" in report.verdict
    assert [record.getMessage() for record in caplog.records if "audit" in record.name] == report.warnings()


@pytest.mark.parametrize("spoilt", ["label", "pixel_values"])
def test_data_in_which_the_original_does_not_know_the_classes_give_no_verdict(dataset, knowing, spoilt):
    """Labels by other ids, or images prepared in another way. Answers by chance are no recognition."""
    rng = np.random.default_rng(0)

    def spoil(row):
        return {"label": (row["label"] + 1) % 4, "pixel_values": 9 * rng.normal(size=(1, 4, 4))}[spoilt]

    data = DatasetDict(
        {
            name: part.with_format("numpy").map(lambda row: {spoilt: spoil(row)}, features=part.features)
            for name, part in dataset.items()
        }
    ).with_format("torch")
    report = audit_models(knowing, model(1), data, [1, 3], reference=model(4), quick=True, attacks=["answer", "knn"])
    assert report.recognised is False
    assert report.recovered is None
    assert report.verdict.startswith("Not known: the original itself")


@pytest.mark.parametrize(
    ("seeds", "twin"), [((0,), "the original"), ((1,), "the forgotten model"), ((2, 2), "retrained 1")]
)
def test_a_reference_of_the_same_weights_is_refused_with_the_name_of_its_twin(dataset, seeds, twin):
    """The base model given twice, a training that changed nothing, or two references of one seed."""
    with refused("reference") as error:
        audit(dataset, reference=[model(seed) for seed in seeds])
    assert error.value.value.endswith(f"has the weights of {twin}")


def test_a_reference_that_always_answers_the_same_knows_nothing(dataset):
    constant = model(2)
    with torch.no_grad():
        constant.classifier.bias[3] = 100.0
    assert audit(dataset, reference=constant, attacks=["answer"]).has_retrained


def test_another_preparation_of_the_same_rows_is_another_audit(dataset, counted, tmp_path):
    def blind(rows):
        labels = torch.stack([row["label"] for row in rows])
        return {"pixel_values": torch.zeros(len(rows), 1, 4, 4), "labels": labels}

    for options in ({}, {"data_collator": blind}):
        audit(dataset, attacks=[counted], folder=tmp_path, **options)
    assert len(counted.calls) == 6


def test_few_samples_and_one_class(dataset):
    """No attack fails where a class has a single sample, or only one class was forgotten."""
    first = next(row for row, label in enumerate(dataset["train"]["label"]) if label == 3)
    rows = [row for row, label in enumerate(dataset["train"]["label"]) if label != 3 or row == first]
    few = DatasetDict(train=dataset["train"].select(rows), test=dataset["test"])
    report = audit_models(model(0), model(1), few, [3], reference=model(2), quick=True, disable_tqdm=True)
    assert report.gap is not None


def test_membership_is_not_asked_where_no_sample_is_known_to_be_a_member(dataset):
    report = audit(dataset["train"])
    assert not any(attack.name.startswith("membership") for attack in report.attacks)


def test_nothing_forgotten_or_nothing_kept_is_refused(dataset):
    for classes in ([], [0, 1, 2, 3]):
        with refused("forget_classes"):
            audit_models(model(0), model(1), dataset, classes, reference=model(2))


def test_data_prepared_otherwise_than_in_training_is_remarked(dataset, tmp_path):
    """Then the original may not know its classes, and nothing seems to be recovered."""
    processors = [ViTImageProcessor(size={"height": size, "width": size}) for size in (8, 16)]
    args = GSLoraTrainingArguments(str(tmp_path), max_steps=1, sparsity="none", disable_tqdm=True)
    forgetter = ContinualForgetter(model(0), dataset, tmp_path / "run", args=args, processing_class=processors[0])
    forgetter.forget(ForgetRequest(["axolotl"]))
    remarks = []
    for processor in (None, *processors):
        options = {"attacks": ["answer"], "reference": model(2), "processing_class": processor, "disable_tqdm": True}
        report = audit_run(model(0), tmp_path / "run", dataset, **options)
        remarks.append(report.facts.get("remarks", []))
    assert [len(found) for found in remarks] == [0, 0, 1]
    assert "task_001" in remarks[2][0]


def test_a_run_is_audited_with_all_tasks_in_effect(dataset, tmp_path):
    args = GSLoraTrainingArguments(str(tmp_path), max_steps=2, sparsity="none", disable_tqdm=True)
    forgetter = ContinualForgetter(model(0), dataset, tmp_path / "run", args=args, method=get_method("gs_lora"))
    forgetter.forget(ForgetRequest(["axolotl"]))
    forgetter.forget(ForgetRequest(["tapir"]))
    report = audit_run(model(0), tmp_path / "run", dataset, attacks=["answer"], reference=model(2), disable_tqdm=True)
    assert report.tasks == ["task_001", "task_002"]
    assert report.facts["classes"] == {"forgotten": 2, "kept": 2}
    by_hand = audit_models(
        model(0), forgetter.model, dataset, [1, 3], attacks=["answer"], reference=model(2), disable_tqdm=True
    )
    assert [m.fingerprint for m in report.models] == [m.fingerprint for m in by_hand.models]
    forgetter.revoke("task_002")
    forgetter.revoke("task_001")
    with pytest.raises(InvalidLedgerError):
        audit_run(model(0), tmp_path / "run", dataset)
