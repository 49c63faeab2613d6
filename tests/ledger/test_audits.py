"""The record of an audit in the ledger: what is accepted, what it covers, and how it is told."""

import copy
import json

import pytest
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import (
    InvalidLedgerError,
    TaskEntry,
    WorseAuditError,
    audit_lines,
    audit_verdict,
    outdated_audit,
)

BASE = {"fingerprint": "sha256:" + "1234567890abcdef" * 4, "num_labels": 10}
NOW = "2026-01-31T12:00:00Z"
GAP = {"points": 12.34, "margin": 2.5, "attack": "knn", "title": "nearest neighbours", "setting": "all", "where": ""}
SUMMARY = {
    "tasks": ["task_001", "task_002"],
    "verdict": audit_verdict(GAP, True, "retrained"),
    "recovered": True,
    "recovery_gap": GAP,
    "reference": "retrained",
    "references": 3,
    "attacks": ["knn"],
    "quick": False,
}


def add_task(ledger):
    name = ledger.next_task_name()
    class_id = int(name[-3:])
    ledger.append(TaskEntry(name, {"classes": [class_id]}, [class_id], NOW, NOW))


@pytest.fixture
def ledger(tmp_path):
    """A ledger of two tasks, both audited."""
    ledger = ForgettingLedger.create(tmp_path / "run", base_model=BASE)
    with ledger.changes():
        add_task(ledger)
        add_task(ledger)
        ledger.record_audit(SUMMARY, {"audit/report.md": "ab" * 32})
    return ledger


def test_an_audit_is_read_back(ledger):
    again = ForgettingLedger.load(ledger.folder)
    assert again.audit == ledger.audit
    assert again.audit["recorded_at"].endswith("Z")
    assert again.audit["files"] == {"audit/report.md": "ab" * 32}
    assert again.to_dict() == json.loads(ledger.path.read_text())


def test_what_models_know_before_any_attack_is_read_back(ledger):
    """Earlier versions did not record it."""
    more = {"recognised": False, "kept": {"original": 97.5, "references": [20.0, 96.0]}}
    with ledger.changes():
        ledger.record_audit({**SUMMARY, **more, "recovered": None})
    assert more.items() <= ForgettingLedger.load(ledger.folder).audit.items()
    gap = {name: value for name, value in GAP.items() if name != "points"}
    for wrong in (
        {"recovery_gap": gap},
        {"recognised": "yes"},
        {"kept": {"original": 1.0}},
        {"kept": {**more["kept"], "references": ["x"]}},
    ):
        with pytest.raises(InvalidLedgerError):
            ledger.record_audit({**SUMMARY, **wrong})


BETTER = {"recovered": False, "verdict": "No attack that was tried.", "recovery_gap": {**GAP, "points": 1.0}}


@pytest.mark.parametrize(
    "less",
    [
        {"attacks": ["answer"]},
        {"quick": True},
        {"references": 1},
        {"reference": "random", "recovered": None},
        {"figures": 3},
    ],
    ids=lambda less: next(iter(less)),
)
def test_a_smaller_audit_does_not_replace_a_worse_verdict(ledger, less):
    """Else one harmless attack, tried afterwards, would be all that the card tells."""
    recorded = {**SUMMARY, "figures": 4}
    with ledger.changes():
        ledger.record_audit(recorded)
    before = ledger.path.read_bytes()
    for found in (BETTER, {"recovery_gap": {**GAP, "points": 5.5}}):  # also "not gone", but only just
        with pytest.raises(WorseAuditError) as error, ledger.changes():
            ledger.record_audit({**recorded, **found, **less})
        assert error.value.verdict == SUMMARY["verdict"]
    assert ledger.path.read_bytes() == before
    # In any case if asked for; and what is as bad, or tried as much, or of another state of the run.
    ledger.record_audit({**recorded, "attacks": ["answer"], "quick": True})
    ledger.record_audit(recorded)
    ledger.record_audit({**recorded, **BETTER})
    ledger.record_audit({**recorded, **BETTER, **less})
    ledger.record_audit(recorded)
    ledger.record_audit({**recorded, **BETTER, **less, "tasks": ["task_001"]})
    ledger.record_audit(recorded)
    ledger.record_audit({**recorded, **BETTER, **less}, replace=True)
    assert ledger.audit["recovered"] is less.get("recovered", False)


def test_without_an_audit_the_file_is_as_before(tmp_path):
    """Ledgers that earlier versions wrote have no such field, and get none."""
    ledger = ForgettingLedger.create(tmp_path, base_model=BASE)
    ledger.save()
    assert "audit" not in json.loads(ledger.path.read_text())
    assert ForgettingLedger.load(tmp_path).audit is None


def test_fields_of_later_versions_stay(ledger):
    with ledger.changes():
        ledger.record_audit({**SUMMARY, "certificate": [1]})
    assert ForgettingLedger.load(ledger.folder).audit["certificate"] == [1]


def test_a_change_that_fails_leaves_the_audit(ledger):
    """In memory and in the file."""
    before, raw = copy.deepcopy(ledger.audit), sha256_of(ledger.path)

    def fail():
        with ledger.changes():
            ledger.record_audit({**SUMMARY, "quick": True})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert ledger.audit == before
    assert sha256_of(ledger.path) == raw


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tasks": []}, "audit['tasks']"),
        ({"tasks": ["task_003"]}, "audit['tasks']"),
        ({"verdict": 1}, "audit['verdict']"),
        ({"reference": "none"}, "audit['reference']"),
        ({"references": 0}, "audit['references']"),
        ({"recovery_gap": {**GAP, "points": "many"}}, "audit['recovery_gap']['points']"),
        ({"quick": "yes"}, "audit['quick']"),
    ],
)
def test_a_wrong_record_is_refused(ledger, change, name):
    with refused(name, kind=InvalidLedgerError), ledger.changes():
        ledger.record_audit({**SUMMARY, **change})
    assert ForgettingLedger.load(ledger.folder).audit["quick"] is False


@pytest.mark.parametrize("name", ["audit/../../x.md", "tasks/task_001/x.md", "audit/faces.jpg", "/audit/report.md"])
def test_files_elsewhere_are_refused(ledger, name):
    with pytest.raises(InvalidLedgerError):
        ledger.record_audit(SUMMARY, {name: "ab" * 32})


def test_later_tasks_are_not_covered(ledger):
    """The verdict is never that of the present state after a change."""
    assert outdated_audit(ledger.audit, ledger.tasks) is None
    assert audit_lines(ledger.audit, ledger.tasks) == [SUMMARY["verdict"]]
    add_task(ledger)
    (outdated, verdict) = audit_lines(ledger.audit, ledger.tasks)
    assert outdated == "Audited after task_002; task_003, which came later, is not audited."
    assert verdict.startswith("The verdict of then: Not gone")
    add_task(ledger)
    assert "later tasks are not audited" in audit_lines(ledger.audit, ledger.tasks)[0]


def test_revoked_tasks_change_what_was_audited(ledger):
    ledger.revoke("task_001")
    said = "Audited after task_002; task_001 was revoked since."
    assert outdated_audit(ledger.audit, ledger.tasks) == said
    assert audit_lines(None, ledger.tasks) == []


@given(
    st.floats(-100, 100),
    st.sampled_from([True, False, None]),
    st.sampled_from(["retrained", "random"]),
    st.sampled_from(["excess", "distance"]),
    st.sampled_from([None, 7.5]),
    st.sampled_from([0, 1]),
)
def test_the_verdict_is_one_sentence(points, recovered, reference, judged, noise, decimals):
    """It has the margin, says "not gone" or "no attack" only where that is known, and what the gap is measured by."""
    gap = {**GAP, "points": points, "judged": judged}
    verdict = audit_verdict(gap, recovered, reference, noise=noise, decimals=decimals)
    assert verdict.endswith(".")
    assert "nearest neighbours (all)" in verdict
    assert "±" in verdict
    assert "-" not in verdict
    known = reference == "retrained" and recovered is not None
    assert verdict.startswith("Not known") is not known
    if known:
        assert verdict.startswith("Not gone") is recovered
    if reference == "retrained":
        assert ("differs by" in verdict) is (judged == "distance" and recovered is not False)
        assert ("differ by up to" in verdict) is (noise is not None)
