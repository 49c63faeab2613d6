"""The recovery gap, the verdict, and what of an audit becomes a file or an entry of the ledger."""

import dataclasses
import json

import pytest
from errors import refused
from made_up_audits import BASE, attack, made_up, measured, without

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.audit import AuditReport, Measurement
from gs_lora_peft.audit.page import render_report
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import LedgerError, OtherBaseModelError, TaskEntry, WorseAuditError

MODEL = {"name_or_path": "org/base", "model_class": "ViTForImageClassification", "num_labels": 10}


def make_run(folder, count=2, fingerprint=BASE):
    ledger = ForgettingLedger.create(folder, base_model={**MODEL, "fingerprint": fingerprint})
    with ledger.changes():
        for _ in range(count):
            add_task(ledger)
    return ledger


def add_task(ledger):
    name = ledger.next_task_name()
    moment, class_id = "2026-01-31T00:00:00Z", int(name[-3:])
    ledger.append(TaskEntry(name, {"classes": [class_id]}, [class_id], moment, moment))


def test_the_gap_is_the_largest_excess_over_the_mean_of_the_references():
    gap = made_up(excess=20.0).gap
    assert (gap.attack, gap.setting, gap.where) == ("linear_probe", "among all, 4-shot", "block 5")
    assert gap.points == pytest.approx(20.0)
    # Half widths of 2 points for the forgotten model and each of three references.
    assert gap.margin == pytest.approx((2**2 + 3 * 2**2 / 9) ** 0.5)


def test_figures_that_are_judged_by_distance_count_on_both_sides():
    gap = made_up(excess=-50.0).gap
    assert (gap.attack, gap.points) == ("membership", pytest.approx(3.0))


@pytest.mark.parametrize(("excess", "recovered"), [(20.0, True), (5.5, True), (5.0, False), (-30.0, False)])
def test_the_verdict_says_whether_it_is_gone(excess, recovered):
    report = made_up(excess)
    assert report.recovered is recovered
    assert report.verdict.startswith("Not gone" if recovered else "No attack that was tried")
    assert "retrained" in report.verdict


def test_what_is_not_known_is_not_said():
    """Chosen attacks that find nothing, random weights alone, and a gap that the samples are too few for."""
    facts = made_up().facts | {"every_attack": False}
    some = AuditReport(made_up(0).models, made_up(0).attacks, facts=facts)
    assert some.recovered is None
    assert AuditReport(made_up(20).models, made_up(20).attacks, facts=facts).recovered is True
    models = [dataclasses.replace(m, kind="random" if m.kind == "retrained" else m.kind) for m in made_up(20).models]
    assert AuditReport(models, made_up(20).attacks).recovered is None
    wide = attack("knn", "kNN", "excess", lambda n: [Measurement("all", [98, 90, 60, 60, 60][n], 0, 100)])
    unsure = AuditReport(made_up(0).models, [wide])
    assert unsure.gap.points == pytest.approx(30)
    assert unsure.recovered is None
    for report in (some, unsure):
        assert report.verdict.startswith("Not known")


def answering(report, original=98.0, kept=(97.0, 95.0, 96.0, 97.0), reference=0.0, margin=4.0):
    """The same audit with what the original and the references know before any attack."""
    names = [model.name for model in report.models if model.kind != "forgotten"]
    known = [original, *[reference] * (len(names) - 1)]
    answers = {
        name: {"kept": share, "forgotten": points, "margin": margin}
        for name, share, points in zip(names, kept, known, strict=True)
    }
    return dataclasses.replace(report, facts=report.facts | {"answers": answers})


@pytest.mark.parametrize("excess", [20.0, 0.0])
@pytest.mark.parametrize("known", [{"original": 4.0}, {"original": 98.0, "reference": 94.0}, {"original": -2.0}])
def test_what_the_original_does_not_know_is_neither_gone_nor_silent(excess, known):
    """Noise, other labels, or another preparation: an attack has nothing to get back."""
    report = answering(made_up(excess), **known)
    assert report.recovered is None
    assert report.verdict.startswith("Not known: the original itself does not recognise")
    assert report.summary()["recognised"] is False
    assert report.warnings()
    # 20 points are many, but not with an interval of this width.
    assert answering(made_up(excess), original=20.0).recognised is True
    assert answering(made_up(excess), original=20.0, margin=30.0).recognised is False


@pytest.mark.parametrize("excess", [20.0, 0.0])
def test_what_is_known_before_any_attack_changes_no_ordinary_verdict(excess):
    report = answering(made_up(excess))
    assert (report.verdict, report.recovered) == (made_up(excess).verdict, made_up(excess).recovered)
    assert report.warnings() == []


@pytest.mark.parametrize(("excess", "recovered"), [(20.0, True), (0.0, False)])
def test_a_weak_reference_is_told_with_the_verdict(excess, recovered):
    """The least of all: beside it even what every model learns looks remembered."""
    report = answering(made_up(excess), kept=(97.0, 95.0, 20.0, 60.0))
    assert report.recovered is recovered
    own = made_up(excess).verdict.removesuffix(".")
    assert report.verdict.startswith(f"{own}; a reference is weak, right on 20.0 % of the kept samples")
    assert "the original on 97.0 %" in report.verdict
    assert report.summary()["kept"] == {"original": 97.0, "references": [95.0, 20.0, 60.0]}
    (warning,) = report.warnings()
    assert "--retrain-epochs" in warning
    page = render_report(report, [])
    assert "20.0" in next(line for line in page.splitlines() if line.startswith("| retrained 2"))


def test_nothing_judged():
    """Without an attack that fits, there is neither a gap nor a verdict on it."""
    report = AuditReport(made_up().models, [])
    assert (report.gap, report.recovered) == (None, None)
    assert report.verdict.startswith("Nothing was judged")


def test_json_round_trip():
    report = made_up()
    assert AuditReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    with refused("schema", "other/1"):
        AuditReport.from_dict({**report.to_dict(), "schema": "other/1"})


def test_what_retrained_models_differ_by_is_noise():
    """A model that never learned the classes would otherwise be said to remember them."""
    report = made_up(excess=8)
    assert report.recovered
    differing = attack("knn", "kNN", "excess", lambda number: [measured([98, 50, 40, 52, 60][number])])
    report = AuditReport(report.models, [*report.attacks, differing])
    assert report.noise == pytest.approx(14)
    assert report.gap.points == pytest.approx(8)
    assert report.recovered is False
    assert report.summary()["noise"] == report.noise
    assert "differ by up to 14.0 points" in report.verdict


def test_saving(tmp_path):
    """All files are there, JSON gives the audit back, and another audit leaves no figure of the first one behind."""
    report = made_up()
    files = report.save(tmp_path)
    names = ["audit.json", "report.md", "report.html", "attacks.png", "layers.png", "curves.png"]
    assert [file.name for file in files] == names
    assert AuditReport.from_dict(json.loads(files[0].read_text("utf-8"))) == report
    AuditReport(report.models, report.attacks[:1]).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {"layers.png", "curves.png"}


def test_recording(tmp_path):
    """The ledger has the summary and the hashes of what may be published; a later task is not covered."""
    make_run(tmp_path)
    report = made_up()
    report.record(tmp_path)
    ledger = ForgettingLedger.load(tmp_path)
    assert report.summary().items() <= ledger.audit.items()
    published = ["audit.json", "report.md", "attacks.png", "layers.png", "curves.png"]
    assert ledger.audit["files"] == {f"audit/{name}": sha256_of(tmp_path / "audit" / name) for name in published}
    with ledger.changes():
        add_task(ledger)
    assert ForgettingLedger.load(tmp_path).audit == ledger.audit


def test_a_smaller_audit_leaves_a_worse_one_and_its_report(tmp_path):
    """Unless it is told to replace it."""
    make_run(tmp_path)
    made_up(20).record(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    smaller = made_up(0)
    smaller = dataclasses.replace(smaller, attacks=smaller.attacks[:1])
    with pytest.raises(WorseAuditError) as error:
        smaller.record(tmp_path)
    assert (error.value.verdict, error.value.replacement) == (made_up(20).verdict, smaller.verdict)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    smaller.record(tmp_path, replace=True)
    assert ForgettingLedger.load(tmp_path).audit["verdict"] == smaller.verdict


@pytest.mark.parametrize(
    ("run", "kind"), [({"fingerprint": "sha256:" + "cd" * 32}, OtherBaseModelError), ({"count": 1}, LedgerError)]
)
def test_an_audit_of_another_run_is_not_recorded(tmp_path, run, kind):
    make_run(tmp_path, **run)
    before = (tmp_path / "forgetting.json").read_bytes()
    with pytest.raises(kind):
        made_up().record(tmp_path)
    assert (tmp_path / "forgetting.json").read_bytes() == before
    assert not (tmp_path / "audit").exists()


def test_models_without_a_reference():
    """Nothing is compared where the references have no figure."""
    assert made_up(references=1).gap.points == pytest.approx(20.0)
    assert without(made_up(), {"retrained 1", "retrained 2", "retrained 3"}).gap is None
