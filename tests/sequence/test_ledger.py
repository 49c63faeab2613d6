import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gs_lora_peft.sequence import ForgetRequest, ForgettingLedger, LedgerError, TaskEntry, ledger_file
from gs_lora_peft.sequence.ledger import LEDGER_NAME
from gs_lora_peft.sequence.request import parse_utc
from gs_lora_peft.sequence.versions import library_versions
from gs_lora_peft.storage import sha256_of

BASE = {
    "name_or_path": "org/base",
    "revision": "abc",
    "model_class": "ViTForImageClassification",
    "num_labels": 10,
    "fingerprint": "sha256:" + "1234567890abcdef" * 4,
}
UNBOUNDED = {**BASE, "num_labels": None}
NOW = "2025-01-31T12:00:00Z"
needs_locks = pytest.mark.skipif(os.name != "posix", reason="needs file locks")


def entry(number=1, classes=(3,), **more):
    values = {
        "name": f"task_{number:03d}",
        "request": ForgetRequest([3], requested_at=NOW).to_dict(),
        "classes": list(classes) if isinstance(classes, (tuple, range)) else classes,
        "started_at": NOW,
        "finished_at": NOW,
        "sizes": {"forget": 10, "retain": 90},
        "settings": {"forget_weight": 0.15},
        "versions": {"torch": "2.13"},
        "groups": {"total": 2, "active": ["a"], "zero": ["b"], "zero_group_ratio": 0.5},
        "scores": {"before": {"acc_forget": 98.5}, "after": {"acc_forget": 0.0}},
    }
    return TaskEntry(**{**values, **more})


def filled(folder, *class_lists, base=BASE, **more):
    ledger = ForgettingLedger.create(folder, base_model=base, **more)
    for number, classes in enumerate(class_lists or ([3], [7], [0, 1]), start=1):
        ledger.append(entry(number, classes))
    ledger.save()
    return ledger


def with_files(folder, count=2):
    ledger = ForgettingLedger.create(folder, base_model=BASE)
    for number in range(1, count + 1):
        name = f"tasks/task_{number:03d}/adapter_model.safetensors"
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(f"weights {number}".encode() * 10)
        ledger.append(entry(number, [number], files={name: sha256_of(path)}))
    ledger.save()
    return ledger


def rewrite(folder, change, *, sign=True):
    """Edits the file of a ledger; with `sign`, as somebody would who knows how to compute the digest."""
    path = folder / LEDGER_NAME
    data = json.loads(path.read_text("utf-8"))
    data.pop("digest")
    change(data)
    data["digest"] = ledger_file._digest(data) if sign else "sha256:" + "0" * 64
    path.write_text(json.dumps(data), "utf-8")


# Create, load, save


def test_create_save_load(tmp_path):
    folder = tmp_path / "runs" / "clinic"
    ledger = ForgettingLedger.create(folder, base_model=BASE, label_names=[f"c{i}" for i in range(10)])
    assert not folder.exists()
    ledger.append(entry(classes=[3], class_names=["c3"]))
    ledger.save()
    again = ForgettingLedger.load(str(folder))
    assert again.to_dict() == ledger.to_dict()
    assert again.tasks == ledger.tasks
    assert (again.folder, again.base_model, again.label_names) == (folder, BASE, ledger.label_names)
    data = json.loads((folder / LEDGER_NAME).read_text())
    assert list(data) == ["schema_version", "base_model", "label_names", "tasks", "digest"]
    assert data["schema_version"] == 1
    assert "revocation" not in data["tasks"][0]


def test_the_file_does_not_depend_on_when_it_is_saved(tmp_path):
    ledger = filled(tmp_path)
    before = ledger.path.read_bytes()
    ForgettingLedger.load(tmp_path).save()
    assert ledger.path.read_bytes() == before


def test_create_does_not_take_over_a_folder(tmp_path):
    filled(tmp_path)
    with pytest.raises(LedgerError, match="exists already"):
        ForgettingLedger.create(tmp_path, base_model=BASE)


def test_saving_over_a_change_of_somebody_else_is_refused(tmp_path):
    mine, other = filled(tmp_path), ForgettingLedger.load(tmp_path)
    other.append(entry(4, [9]))
    other.save()
    content = other.path.read_bytes()
    mine.append(entry(4, [8]))
    with pytest.raises(LedgerError, match=r"changed since it was read\. Load it again"):
        mine.save()
    assert other.path.read_bytes() == content
    late = ForgettingLedger(tmp_path, BASE)
    with pytest.raises(LedgerError, match="changed since"):
        late.save()


def test_save_can_be_repeated_and_restores_a_deleted_file(tmp_path):
    ledger = filled(tmp_path)
    ledger.save()
    ledger.path.unlink()
    ledger.save()
    assert len(ForgettingLedger.load(tmp_path).tasks) == 3


def test_unknown_keys_survive(tmp_path):
    filled(tmp_path)

    def change(data):
        data["note"] = {"x": [1]}
        data["base_model"]["mirror"] = "elsewhere"
        data["tasks"][0]["operator"] = "dr"

    rewrite(tmp_path, change)
    ledger = ForgettingLedger.load(tmp_path)
    ledger.revoke("task_001")
    ledger.save()
    data = json.loads(ledger.path.read_text())
    assert data["note"] == {"x": [1]}
    assert data["base_model"]["mirror"] == "elsewhere"
    assert data["tasks"][0]["operator"] == "dr"
    assert ForgettingLedger.load(tmp_path).tasks[0].extra == {"operator": "dr"}


def test_a_hundred_tasks_load_fast(tmp_path):
    groups = [f"vit.layers.{i}" for i in range(24)]
    files = {f"tasks/{{}}/{name}": "0" * 64 for name in ("adapter_model.safetensors", "a.json", "b.json", "c.json")}
    ledger = ForgettingLedger.create(tmp_path, base_model=UNBOUNDED, label_names=[f"name {i}" for i in range(1000)])
    for number in range(1, 101):
        ledger.append(
            entry(
                number,
                range(number * 10, number * 10 + 8),
                settings={f"setting_{i}": i for i in range(150)},
                files={key.format(f"task_{number:03d}"): digest for key, digest in files.items()},
                groups={"total": 24, "active": groups[:12], "zero": groups[12:], "zero_group_ratio": 0.5},
            )
        )
    ledger.save()
    times = []
    for _ in range(3):
        start = time.process_time()
        assert len(ForgettingLedger.load(tmp_path).tasks) == 100
        times.append(time.process_time() - start)
    assert min(times) <= 0.2 * (5 if sys.gettrace() else 1)  # coverage traces every line


# Tasks


def test_tasks_classes_and_names(tmp_path):
    ledger = filled(tmp_path)
    assert ledger.next_task_name() == "task_004"
    assert ledger.forgotten_classes == [3, 7, 0, 1]
    assert ledger.task_of_class(1).name == "task_003"
    assert ledger.task_of_class(5) is None
    ledger.revoke("task_003")
    assert ledger.next_task_name() == "task_004"
    assert [task.name for task in ledger.active_tasks] == ["task_001", "task_002"]
    assert ledger.forgotten_classes == [3, 7]
    assert ledger.task_of_class(1) is None
    ledger.append(entry(4, [1]))  # what was taken back may be forgotten again
    assert ledger.task_of_class(1).name == "task_004"


def test_names_beyond_999_stay_in_numeric_order(tmp_path):
    ledger = ForgettingLedger(tmp_path, UNBOUNDED, tasks=[entry(n, [n]) for n in (2, 998, 999)])
    for expected in ("task_1000", "task_1001"):
        assert ledger.next_task_name() == expected
        ledger.append(entry(int(expected[5:]), [int(expected[5:])]))
    ledger.save()
    assert [task.number for task in ForgettingLedger.load(tmp_path).tasks] == [2, 998, 999, 1000, 1001]
    assert [task.number for task in ledger.select(["task_1001", "task_999"])] == [999, 1001]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (entry(3), "named 'task_003'; expected 'task_002'. Rename"),
        (entry(1), "expected 'task_002'"),
        (entry(2, [1, 3]), "holds 3, which task_001 has forgotten already. Leave it out, or revoke task_001"),
        (entry(2, [10]), "holds 10; the base model's head has the classes 0 to 9"),
    ],
)
def test_append_refuses(tmp_path, bad, said):
    ledger = filled(tmp_path, [3])
    with pytest.raises(LedgerError, match=said):
        ledger.append(bad)
    assert len(ledger.tasks) == 1


def test_revoke(tmp_path):
    ledger = filled(tmp_path)
    revoked = ledger.revoke(
        "task_002",
        reason="error",
        scores_before={"acc_old": 1.0},
        scores_after={"acc_old": np.float32(0.5)},
    )
    assert revoked.status == "revoked"
    assert revoked.revocation == {
        "revoked_at": parse_utc(revoked.revocation["revoked_at"]),
        "reason": "error",
        "scores_before": {"acc_old": 1.0},
        "scores_after": {"acc_old": 0.5},
    }
    ledger.save()
    again = ForgettingLedger.load(tmp_path)
    assert again.tasks[1] == revoked
    assert [task.status for task in again.tasks] == ["done", "revoked", "done"]
    for name, said in (("task_002", "was revoked"), ("task_009", "no task 'task_009'.*task_001, task_003")):
        with pytest.raises(LedgerError, match=said):
            again.revoke(name)
    with pytest.raises(LedgerError, match=r"`task_001.revocation.scores_after.h` is nan"):
        again.revoke("task_001", scores_after={"h": float("nan")})
    assert again.to_dict() == ledger.to_dict()


def test_select(tmp_path):
    ledger = filled(tmp_path, [1], [2], [3], [4])
    ledger.revoke("task_002")

    def numbers(tasks):
        return [task.number for task in ledger.select(tasks)]

    assert numbers(None) == [1, 3, 4]
    assert numbers(0) == numbers([]) == []
    assert numbers(2) == [1, 3]
    assert numbers(3) == [1, 3, 4]
    assert numbers(["task_004", "task_001"]) == numbers(("task_001", "task_004")) == [1, 4]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (4, "tasks is 4; expected a number from 0 to 3"),
        (-1, "tasks is -1; expected a number from 0 to 3"),
        (["task_007"], "no task 'task_007'"),
        ([1], "no task 1"),
        (["task_001", "task_002"], "'task_002' was revoked"),
        (["task_001", "task_001"], "each name once"),
        ("task_001", "a list of names"),
        (True, "a list of names"),
        (1.0, "a list of names"),
        ({"task_001"}, "a list of names"),
    ],
)
def test_select_refuses_and_says_what_there_is(tmp_path, tasks, said):
    ledger = filled(tmp_path, [1], [2], [3], [4])
    ledger.revoke("task_002")
    with pytest.raises(LedgerError, match=f"{said}.* The tasks in effect are: task_001, task_003, task_004"):
        ledger.select(tasks)


# Entries


@pytest.mark.parametrize("name", ["task_000", "task_1", "task_01", "task_0001", "task_", "Task_001", "task_001 ", 1])
def test_bad_names(name):
    with pytest.raises(LedgerError, match="`a task's name` is"):
        entry(name=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("classes", value) for value in ([], [-1], [1, 1], [True], [1.0], ["a"], "3", 3, {"a": 1})),
        *(("class_names", value) for value in (["a", "b"], [1], "a", [])),
        *(("started_at", value) for value in ("yesterday", "2025-01-31T12:00:00", None, 3)),
        ("finished_at", None),
        *(("status", value) for value in ("running", None, [])),
        ("revocation", []),
        ("revocation", {}),
        *((key, []) for key in ("request", "sizes", "settings", "versions", "files", "groups", "scores", "extra")),
        *(("files", {path: "0" * 64}) for path in ("/etc/passwd", "../a", "a/../../b", "a\\b", "C:/a", "", "a//b")),
        *(("files", {"a": digest}) for digest in ("0" * 63, "0" * 63 + "G", "A" * 64, "0" * 64 + "\n", None, 3)),
        ("groups", {"active": "a"}),
        ("groups", {"zero": [1]}),
        ("scores", {"after": 3}),
        ("extra", {"files": {}}),
        ("scores", {"after": {"h": float("nan")}}),
        ("scores", {"before": {"h": float("-inf")}}),
        ("settings", {"x": [{"y": np.float32("inf")}]}),
        ("settings", {1: 2}),
        ("settings", {"x": {1, 2}}),
        ("settings", {"x": object()}),
        ("settings", {"x": "\ud800"}),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(LedgerError, match=rf"task_001\.{field}\S* (is|has)") as caught:
        entry(**{field: value})
    assert "expected" in str(caught.value)


def test_values_become_plain(tmp_path):
    made = entry(
        classes=(np.int64(3),),
        settings={"t": (1, np.float64(2.5)), "n": np.int32(4), "none": None, "flag": False},
        started_at="2025-01-31T13:00:00+01:00",
    )
    assert made.classes == [3]
    assert type(made.classes[0]) is int
    assert made.settings == {"t": [1, 2.5], "n": 4, "none": None, "flag": False}
    assert made.started_at == NOW
    assert TaskEntry.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_entries_do_not_share_what_they_were_given():
    scores = {"after": {"h": 1.0}}
    made = entry(scores=scores)
    scores["after"]["h"] = 2.0
    assert made.scores == {"after": {"h": 1.0}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.status = "revoked"


def test_classes_can_be_withheld(tmp_path):
    ledger = ForgettingLedger.create(tmp_path, base_model=BASE)
    ledger.append(entry(classes=None, request={"number": 1, "salted_hash": "f00"}))
    ledger.save()
    again = ForgettingLedger.load(tmp_path)
    assert again.forgotten_classes == []
    assert again.task_of_class(3) is None


def test_a_value_spoilt_later_is_refused_when_saving(tmp_path):
    ledger = filled(tmp_path)
    content = ledger.path.read_bytes()
    ledger.tasks[1].scores["after"]["acc_forget"] = float("inf")
    with pytest.raises(LedgerError, match=r"tasks\[1\].scores.after.acc_forget` is inf; expected a finite number"):
        ledger.save()
    assert ledger.path.read_bytes() == content


# The base model


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "`base_model` is None"),
        ({**BASE, "fingerprint": None}, "`base_model.fingerprint` is None"),
        ({**BASE, "fingerprint": "1234"}, "`base_model.fingerprint` is '1234'; expected 'sha256:'"),
        ({**BASE, "revision": 3}, "`base_model.revision` is 3"),
        ({**BASE, "num_labels": "10"}, "`base_model.num_labels` is '10'"),
        ({**BASE, "num_labels": True}, "`base_model.num_labels` is True"),
    ],
)
def test_bad_base_models(tmp_path, base, said):
    with pytest.raises(LedgerError, match=said):
        ForgettingLedger.create(tmp_path, base_model=base)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["a"], "has 1 names; expected 10"), ("abcdefghij", "is .*expected a list of names"), (range(10), "is range")],
)
def test_bad_label_names(tmp_path, labels, said):
    with pytest.raises(LedgerError, match=f"label_names`? {said}"):
        ForgettingLedger.create(tmp_path, base_model=BASE, label_names=labels)


def test_check_base(tmp_path):
    ledger = filled(tmp_path)
    ledger.check_base(BASE["fingerprint"])
    ledger.check_base({**BASE, "name_or_path": "copied-elsewhere"})  # the weights decide, not the name
    other = {**BASE, "fingerprint": "sha256:" + "f" * 64, "num_labels": 12, "revision": None}
    with pytest.raises(LedgerError, match="belongs to another base model") as caught:
        ledger.check_base(other)
    for part in ("ffffffffffff...", "1234567890ab...", "num_labels 12 instead of 10", "'org/base' at revision abc"):
        assert part in str(caught.value)
    with pytest.raises(LedgerError, match="fingerprint None"):
        ledger.check_base({})


# Files


def test_check_files(tmp_path):
    ledger = with_files(tmp_path)
    ledger.check_files()
    ledger.check_files(1)
    first, second = (tmp_path / name for task in ledger.tasks for name in task.files)
    content = first.read_bytes(), second.read_bytes()

    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with pytest.raises(LedgerError, match=r"2 file\(s\)") as caught:
        ledger.check_files()
    one, two = (f"tasks/task_00{n}/adapter_model.safetensors" for n in (1, 2))
    assert f"{one}: swapped, it has the content of {two}" in str(caught.value)
    assert f"{two}: swapped, it has the content of {one}" in str(caught.value)
    with pytest.raises(LedgerError, match=r"1 file\(s\)"):
        ledger.check_files(["task_002"])

    first.write_bytes(b"")
    second.unlink()
    with pytest.raises(LedgerError, match=f"(?s){one}: truncated.*{two}: it is missing.*Fetch or restore"):
        ledger.check_files()

    first.write_bytes(content[0])
    ledger.check_files(["task_001"])
    ledger.revoke("task_002")
    ledger.check_files()


def test_a_link_that_leads_outside_is_refused(tmp_path):
    folder = tmp_path / "folder"
    ledger = with_files(folder)
    path = folder / "tasks" / "task_001" / "adapter_model.safetensors"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(LedgerError, match=r"task_001.*symbolic link"):
        ledger.check_files()
    with pytest.raises(LedgerError, match=r"task_001.*symbolic link"):
        ForgettingLedger.load(folder)


# Damage and edits


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=2), "schema_version.* is 2;.*Upgrade the package: pip install"),
        (lambda d: d.update(schema_version=10**30), "Upgrade the package"),
        (lambda d: d.update(schema_version=0), "schema_version.* is 0; expected 1"),
        (lambda d: d.update(schema_version=True), "schema_version.* is True; expected 1"),
        (lambda d: d.update(schema_version="1"), "schema_version.* is '1'; expected 1"),
        (lambda d: d.pop("schema_version"), "schema_version.* is None; expected 1"),
        (lambda d: d.pop("tasks"), "`tasks` is None; expected a list"),
        (lambda d: d.update(tasks={}), "`tasks` is {}; expected a list"),
        (lambda d: d.update(tasks=[3]), "`a task` is 3; expected an object"),
        (lambda d: d.pop("base_model"), "`base_model` is None"),
        (lambda d: d.update(base_model=[]), r"`base_model` is \[\]"),
        (lambda d: d["base_model"].update(fingerprint=1), "`base_model.fingerprint` is 1"),
        (lambda d: d.update(label_names="a"), "`label_names` is 'a'"),
        (lambda d: d["tasks"][0].pop("files"), r"the task 'task_001' lacks \['files'\]"),
        (lambda d: d["tasks"][0].update(files=[]), r"`task_001.files` is \[\]; expected a dict"),
        (lambda d: d["tasks"][0].update(files={"../../x": "0" * 64}), "'../../x'"),
        (lambda d: d["tasks"][0].update(files={"/etc/passwd": "0" * 64}), "'/etc/passwd'"),
        (lambda d: d["tasks"][0].update(name="../x"), "name` is '../x'"),
        (lambda d: d["tasks"][0].update(name=None), "name` is None"),
        (lambda d: d["tasks"][0].update(classes="x"), "`task_001.classes` is 'x'"),
        (lambda d: d["tasks"][0].update(classes=[99]), "task_001.classes holds 99"),
        (lambda d: d["tasks"][1].update(classes=[3]), "task_002.classes holds 3"),
        (lambda d: d["tasks"].reverse(), "task_002 comes after task_003"),
        (lambda d: d["tasks"].append(d["tasks"][-1]), "task_003 comes after task_003"),
        (lambda d: d["tasks"][0].update(status="revoked"), "`task_001.revocation` is None"),
    ],
)
def test_wrong_content_is_named_even_with_a_right_digest(tmp_path, change, said):
    filled(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(LedgerError, match=said):
        ForgettingLedger.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["tasks"][0]["scores"]["after"].update(acc_forget=0.1),
        lambda d: d["tasks"].pop(),
        lambda d: d.update(note="x"),
        lambda d: None,
    ],
)
def test_an_edit_is_detected(tmp_path, change):
    filled(tmp_path)
    rewrite(tmp_path, change, sign=False)
    with pytest.raises(LedgerError, match=r"forgetting.json.*edited or damaged.*Fetch or restore a clean copy"):
        ForgettingLedger.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a ledger"),
        (b"{", "not a ledger"),
        (b"\x80\x04", "not a ledger"),
        (b"[]", r"holds \[\]; expected a JSON object"),
        (b"null", "holds None; expected a JSON object"),
        (b"{}", "schema_version.* is None"),
        (b'{"schema_version": 1}', "digest None"),
        (b'{"schema_version": 1, "schema_version": 1}', "'schema_version' is given twice"),
        (b'{"schema_version": NaN}', "NaN"),
        (b'{"schema_version": 1, "digest": "", "x": 1e999}', "not accepted"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_ledger(tmp_path, content, said):
    (tmp_path / LEDGER_NAME).write_bytes(content)
    with pytest.raises(LedgerError, match=said):
        ForgettingLedger.load(tmp_path)
    assert (tmp_path / LEDGER_NAME).read_bytes() == content


def test_no_ledger_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(LedgerError, match=r"does not exist.*Check the path"):
            ForgettingLedger.load(folder)
    (tmp_path / LEDGER_NAME).mkdir()
    with pytest.raises(LedgerError, match="not a regular file"):
        ForgettingLedger.load(tmp_path)


def test_an_unreadable_ledger(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ledger_file, "read_limited", denied)
    with pytest.raises(LedgerError, match=r"cannot be read \(Permission denied\)"):
        ForgettingLedger.load(tmp_path)


def test_huge_ledgers_are_neither_read_nor_written(tmp_path, monkeypatch):
    with open(tmp_path / LEDGER_NAME, "wb") as file:
        file.truncate(ledger_file.MAX_LEDGER_BYTES + 1)
    with pytest.raises(LedgerError, match="larger than 67108864 bytes"):
        ForgettingLedger.load(tmp_path)
    (tmp_path / LEDGER_NAME).unlink()
    monkeypatch.setattr(ledger_file, "MAX_LEDGER_BYTES", 1000)
    with pytest.raises(LedgerError, match="at most 1000"):
        filled(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Properties

scores = st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=3)
steps = st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.text(max_size=8), scores), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_append_revoke_save_load(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("ledger")
    ledger = ForgettingLedger.create(folder, base_model=BASE)
    in_effect = {}
    for class_id, revoke, text, numbers in steps:
        if class_id in in_effect and revoke:
            ledger.revoke(in_effect.pop(class_id), reason=text, scores_after=numbers)
        elif class_id in in_effect:
            with pytest.raises(LedgerError, match="already"):
                ledger.append(entry(len(ledger.tasks) + 1, [class_id]))
        else:
            in_effect[class_id] = ledger.next_task_name()
            more = {"class_names": [text], "scores": {"after": numbers}}
            ledger.append(entry(len(ledger.tasks) + 1, [class_id], **more))
        ledger.save()
        again = ForgettingLedger.load(folder)
        assert again.to_dict() == ledger.to_dict()
        assert again.tasks == ledger.tasks
        assert sorted(again.forgotten_classes) == sorted(in_effect)
        assert {c: again.task_of_class(c).name for c in in_effect} == in_effect
        ledger = random.Random(class_id).choice([ledger, again])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_changed_byte_is_detected_or_means_the_same(small_ledger, position, byte):
    folder, original = small_ledger
    data = bytearray(original)
    data[position % len(data)] = byte
    (folder / LEDGER_NAME).write_bytes(data)
    try:
        ForgettingLedger.load(folder)
    except LedgerError:
        return
    assert json.loads(data) == json.loads(original)


@pytest.fixture(scope="module")
def small_ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    ledger = filled(folder, [3], [7])
    return folder, ledger.path.read_bytes()


# Locks, failures and sudden ends


@needs_locks
def test_the_lock(tmp_path):
    ledger, other = filled(tmp_path), ForgettingLedger.load(tmp_path)
    with ledger.lock(), ledger.lock():
        ledger.append(entry(4, [9]))
        ledger.save()
        with pytest.raises(LedgerError, match=r"another process is working in .*Wait"), other.lock():
            raise AssertionError("must not be entered")
        with pytest.raises(LedgerError, match="another process"):
            other.save()
    with pytest.raises(RuntimeError), ledger.lock():
        raise RuntimeError
    with other.lock():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forgetting.json", "forgetting.lock"]
    assert len(ForgettingLedger.load(tmp_path).tasks) == 4


def test_changes_are_saved_or_taken_back(tmp_path, monkeypatch):
    """Whatever fails, the ledger in memory and the file say the same."""
    ledger = filled(tmp_path)
    with ledger.changes():
        ledger.append(entry(4, [9]))
    content = ledger.path.read_bytes()
    assert len(ForgettingLedger.load(tmp_path).tasks) == 4

    def fails(number):
        with ledger.changes():
            ledger.append(entry(number, [8]))
            if number == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails(5)
    with pytest.raises(LedgerError, match="expected 'task_005'"):
        fails(6)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"), ledger.changes():
        ledger.revoke("task_001")
    monkeypatch.undo()
    assert len(ledger.active_tasks) == 4
    assert ledger.path.read_bytes() == content
    other = ForgettingLedger.load(tmp_path)
    with other.changes():
        other.revoke("task_001")
    with pytest.raises(LedgerError, match="changed since it was read"), ledger.changes():
        raise AssertionError("must not be entered")


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_ledger(tmp_path, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = filled(tmp_path)
    content = ledger.path.read_bytes()
    ledger.append(entry(4, [9]))
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"could not write forgetting.json .*unchanged") as caught:
        ledger.save()
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert ledger.path.read_bytes() == content
    assert not list(tmp_path.glob(".staging-*"))
    ledger.save()  # once there is space again
    assert len(ForgettingLedger.load(tmp_path).tasks) == 4


ROOT = Path(ledger_file.__file__).parent.parent
# What the package imports on its own takes seconds and plays no part here, so other processes go round it.
LIGHT_IMPORTS = f"""
import sys, types
for name, path in {[("gs_lora_peft", str(ROOT)), ("gs_lora_peft.sequence", str(ROOT / "sequence"))]!r}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
"""

HELPER = """
    import sys
    from gs_lora_peft.sequence.ledger import ForgettingLedger, TaskEntry
    ledger = ForgettingLedger.load(sys.argv[1])
    now = "2025-01-31T12:00:00Z"
    def more(classes):
        name = ledger.next_task_name()
        ledger.append(TaskEntry(name, {}, classes, now, now, settings={"filler": "x" * 3000}))
"""


def helper(code, folder, **more):
    program = LIGHT_IMPORTS + textwrap.dedent(HELPER) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, **more)


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_real_limit_on_file_size_leaves_the_old_ledger(tmp_path):
    ledger = filled(tmp_path)
    content = ledger.path.read_bytes()
    code = """
        import resource
        more([9])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            ledger.save()
        except OSError as error:
            print(error)
    """
    said, _ = helper(code, tmp_path).communicate()
    assert "could not write forgetting.json" in said
    assert ledger.path.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forgetting.json", "forgetting.lock"]


@needs_locks
def test_killed_while_saving_it_always_loads(tmp_path):
    ForgettingLedger.create(tmp_path, base_model=UNBOUNDED).save()
    code = """
        print("ready", flush=True)
        while True:
            more([len(ledger.tasks)])
            ledger.save()
    """
    chance = random.Random(0)
    counts = [0]
    for _ in range(8):
        run = helper(code, tmp_path)
        assert run.stdout.readline() == "ready\n"
        deadline = time.monotonic() + chance.uniform(0.005, 0.15)
        while time.monotonic() < deadline:
            ForgettingLedger.load(tmp_path)  # whole at every moment
        run.send_signal(signal.SIGKILL)
        run.communicate()
        ledger = ForgettingLedger.load(tmp_path)
        counts.append(len(ledger.tasks))
        with ledger.lock():  # the lock died with its holder
            ledger.save()
        assert not list(tmp_path.glob(".staging-*"))
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_library_versions():
    versions = library_versions()
    assert {"python", "gs_lora_peft", "peft", "transformers", "torch"} <= set(versions)
    assert all(isinstance(version, str) for version in versions.values())
