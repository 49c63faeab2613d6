import dataclasses
import errno
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from errors import ANY, refused
from hypothesis import HealthCheck, given, settings, strategies as st

from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger import ForgetRequest, ForgettingLedger, LedgerError, TaskEntry, schema as ledger_file
from gs_lora_peft.ledger.errors import (
    FilesDifferError,
    InvalidLedgerError,
    LedgerFileError,
    LinkedRunError,
    OtherBaseModelError,
    RunLockedError,
)
from gs_lora_peft.ledger.request import parse_utc
from gs_lora_peft.ledger.schema import LEDGER_NAME

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


@contextmanager
def file_refused(folder, reason):
    """What runs inside is refused because of the file of a ledger."""
    with pytest.raises(LedgerFileError) as error:
        yield error
    assert (error.value.path, error.value.reason) == (folder / LEDGER_NAME, reason)


@contextmanager
def files_differ(*names):
    """What runs inside is refused because files of the run are not those in its ledger."""
    with pytest.raises(FilesDifferError) as error:
        yield error
    assert sorted(error.value.problems) == sorted(names)


def rewrite(folder, change, *, sign=True):
    """Edits the file of a ledger; with `sign`, as an attacker who computes the digest."""
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
    with file_refused(tmp_path, "exists"):
        ForgettingLedger.create(tmp_path, base_model=BASE)


def test_saving_over_a_change_of_somebody_else_is_refused(tmp_path):
    mine, other = filled(tmp_path), ForgettingLedger.load(tmp_path)
    other.append(entry(4, [9]))
    other.save()
    content = other.path.read_bytes()
    mine.append(entry(4, [8]))
    with file_refused(tmp_path, "changed"):
        mine.save()
    assert other.path.read_bytes() == content
    late = ForgettingLedger(tmp_path, BASE)
    with file_refused(tmp_path, "changed"):
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


def calls_to_load(folder, tasks):
    """The number of functions that are called until a ledger of so many tasks is read and checked."""
    groups = [f"vit.layers.{i}" for i in range(24)]
    files = {f"tasks/{{}}/{name}": "0" * 64 for name in ("adapter_model.safetensors", "a.json", "b.json", "c.json")}
    ledger = ForgettingLedger.create(folder, base_model=UNBOUNDED, label_names=[f"name {i}" for i in range(1000)])
    for number in range(1, tasks + 1):
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
    calls, profile = [0], sys.getprofile()

    def count(frame, event, argument):
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        assert len(ForgettingLedger.load(folder).tasks) == tasks
    finally:
        sys.setprofile(profile)
    return calls[0]


def test_the_work_of_loading_grows_with_the_number_of_tasks(tmp_path):
    """Ten times the tasks take about ten times the work, not a hundred times."""
    calls_to_load(tmp_path / "first", 1)  # what happens only once in a process
    assert calls_to_load(tmp_path / "long", 100) <= 12 * calls_to_load(tmp_path / "short", 10)


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
    ("bad", "name", "value"),
    [
        (entry(3), "a task's name", "task_003"),
        (entry(1), "a task's name", "task_001"),
        (entry(2, [1, 3]), "task_002.classes", 3),
        (entry(2, [10]), "task_002.classes", 10),
        (entry(2, [1], missing_classes=[10]), "task_002.missing_classes", 10),
    ],
)
def test_append_refuses(tmp_path, bad, name, value):
    ledger = filled(tmp_path, [3])
    with refused(name, value, InvalidLedgerError):
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
    for name in ("task_002", "task_009"):
        with refused("tasks", name, InvalidLedgerError) as error:
            again.revoke(name)
        assert "task_001, task_003" in error.value.fix
    with refused("task_001.revocation.scores_after.h", kind=InvalidLedgerError) as error:
        again.revoke("task_001", scores_after={"h": float("nan")})
    assert math.isnan(error.value.value)
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
    ("tasks", "value", "expected"),
    [
        (4, 4, "a number from 0 to 3"),
        (-1, -1, "a number from 0 to 3"),
        (["task_007"], "task_007", "the name of a task"),
        ([1], 1, "the name of a task"),
        (["task_001", "task_002"], "task_002", "a task in effect; this one was revoked"),
        (["task_001", "task_001"], ["task_001", "task_001"], "each name once"),
        *((other, other, "None, a number or a list of names") for other in ("task_001", True, 1.0, {"task_001"})),
    ],
)
def test_select_refuses_and_says_what_there_is(tmp_path, tasks, value, expected):
    ledger = filled(tmp_path, [1], [2], [3], [4])
    ledger.revoke("task_002")
    with refused("tasks", value, InvalidLedgerError) as error:
        ledger.select(tasks)
    assert error.value.expected == expected
    assert error.value.fix == "The tasks in effect are: task_001, task_003, task_004."


# Entries


@pytest.mark.parametrize("name", ["task_000", "task_1", "task_01", "task_0001", "task_", "Task_001", "task_001 ", 1])
def test_bad_names(name):
    with refused("a task's name", name, InvalidLedgerError):
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
    with pytest.raises(InvalidLedgerError) as error:
        entry(**{field: value})
    assert error.value.name.removeprefix("a key of ").startswith(f"task_001.{field}")
    assert error.value.expected
    assert error.value.fix


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
    with refused("ledger.tasks[1].scores.after.acc_forget", float("inf"), InvalidLedgerError):
        ledger.save()
    assert ledger.path.read_bytes() == content


# The base model


@pytest.mark.parametrize(
    ("field", "value"),
    [("fingerprint", None), ("fingerprint", "1234"), ("revision", 3), ("num_labels", "10"), ("num_labels", True)],
)
def test_bad_base_models(tmp_path, field, value):
    with refused(f"base_model.{field}", value, InvalidLedgerError):
        ForgettingLedger.create(tmp_path, base_model={**BASE, field: value})
    with refused("base_model", None, InvalidLedgerError):
        ForgettingLedger.create(tmp_path, base_model=None)


@pytest.mark.parametrize("labels", [["a"], "abcdefghij", range(10)])
def test_bad_label_names(tmp_path, labels):
    with refused("label_names", labels, InvalidLedgerError):
        ForgettingLedger.create(tmp_path, base_model=BASE, label_names=labels)


def test_check_base(tmp_path):
    ledger = filled(tmp_path)
    ledger.check_base(BASE["fingerprint"])
    ledger.check_base({**BASE, "name_or_path": "copied-elsewhere"})  # the weights decide, not the name
    other = {**BASE, "fingerprint": "sha256:" + "f" * 64, "num_labels": 12, "revision": None}
    with pytest.raises(OtherBaseModelError) as error:
        ledger.check_base(other)
    assert (error.value.expected, error.value.given) == (BASE, other)
    for part in ("ffffffffffff...", "1234567890ab...", "num_labels 12 instead of 10", "'org/base' at revision abc"):
        assert part in str(error.value)
    with pytest.raises(OtherBaseModelError) as error:
        ledger.check_base({})
    assert error.value.given == {}


# Files


def test_check_files(tmp_path):
    ledger = with_files(tmp_path)
    ledger.check_files()
    ledger.check_files(1)
    first, second = (tmp_path / name for task in ledger.tasks for name in task.files)
    content = first.read_bytes(), second.read_bytes()

    one, two = (f"tasks/task_00{n}/adapter_model.safetensors" for n in (1, 2))
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with files_differ(one, two):
        ledger.check_files()
    with files_differ(two):
        ledger.check_files(["task_002"])

    first.write_bytes(b"")
    second.unlink()
    with files_differ(one, two) as error:
        ledger.check_files()
    assert error.value.folder == tmp_path

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
    with files_differ("tasks/task_001/adapter_model.safetensors"):
        ledger.check_files()
    with pytest.raises(LinkedRunError) as error:
        ForgettingLedger.load(folder)
    assert error.value.folder == folder


# Damage and edits


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        *(
            (lambda d, version=version: d.update(schema_version=version), "schema_version", version)
            for version in (2, 10**30, 0, True, "1", None)
        ),
        (lambda d: d.pop("schema_version"), "schema_version", None),
        (lambda d: d.pop("tasks"), "tasks", None),
        (lambda d: d.update(tasks={}), "tasks", {}),
        (lambda d: d.update(tasks=[3]), "a task", 3),
        (lambda d: d.pop("base_model"), "base_model", None),
        (lambda d: d.update(base_model=[]), "base_model", []),
        (lambda d: d["base_model"].update(fingerprint=1), "base_model.fingerprint", 1),
        (lambda d: d.update(label_names="a"), "label_names", "a"),
        (lambda d: d["tasks"][0].pop("files"), "the task 'task_001'", ANY),
        (lambda d: d["tasks"][0].update(files=[]), "task_001.files", []),
        (lambda d: d["tasks"][0].update(files={"../../x": "0" * 64}), "task_001.files", {"../../x": "0" * 64}),
        (lambda d: d["tasks"][0].update(files={"/etc/passwd": "0" * 64}), "task_001.files", {"/etc/passwd": "0" * 64}),
        (lambda d: d["tasks"][0].update(files={"x": "0"}), "task_001.files['x']", "0"),
        (lambda d: d["tasks"][0].update(name="../x"), "a task's name", "../x"),
        (lambda d: d["tasks"][0].update(name=None), "a task's name", None),
        (lambda d: d["tasks"][0].update(classes="x"), "task_001.classes", "x"),
        (lambda d: d["tasks"][0].update(classes=[99]), "task_001.classes", 99),
        (lambda d: d["tasks"][1].update(classes=[3]), "task_002.classes", 3),
        (lambda d: d["tasks"].reverse(), "a task's name", "task_002"),
        (lambda d: d["tasks"].append(d["tasks"][-1]), "a task's name", "task_003"),
        (lambda d: d["tasks"][0].update(status="revoked"), "task_001.revocation", None),
    ],
)
def test_wrong_content_is_named_even_with_a_right_digest(tmp_path, change, name, value):
    filled(tmp_path)
    rewrite(tmp_path, change)
    if name == "schema_version":
        name = f"schema_version in '{tmp_path / LEDGER_NAME}'"
    with refused(name, value, InvalidLedgerError) as error:
        ForgettingLedger.load(tmp_path)
    assert error.value.fix


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
    with file_refused(tmp_path, "edited"):
        ForgettingLedger.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\x80\x04", "damaged"),
        (b"[]", "damaged"),
        (b"null", "damaged"),
        (b'{"schema_version": 1}', "edited"),
        (b'{"schema_version": 1, "schema_version": 1}', "damaged"),
        (b'{"schema_version": NaN}', "damaged"),
        (b'{"schema_version": 1, "digest": "", "x": 1e999}', "edited"),
        (b"[" * 200_000, "damaged"),
    ],
)
def test_files_that_are_no_ledger(tmp_path, content, reason):
    (tmp_path / LEDGER_NAME).write_bytes(content)
    with file_refused(tmp_path, reason):
        ForgettingLedger.load(tmp_path)
    assert (tmp_path / LEDGER_NAME).read_bytes() == content


def test_no_ledger_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with file_refused(folder, "missing"):
            ForgettingLedger.load(folder)
    (tmp_path / LEDGER_NAME).mkdir()
    with file_refused(tmp_path, "damaged"):
        ForgettingLedger.load(tmp_path)


def test_an_unreadable_ledger(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ledger_file, "read_limited", denied)
    with file_refused(tmp_path, "unreadable") as error:
        ForgettingLedger.load(tmp_path)
    assert error.value.__cause__.errno == errno.EACCES


def test_huge_ledgers_are_neither_read_nor_written(tmp_path, monkeypatch):
    with open(tmp_path / LEDGER_NAME, "wb") as file:
        file.truncate(ledger_file.MAX_LEDGER_BYTES + 1)
    with file_refused(tmp_path, "damaged"):
        ForgettingLedger.load(tmp_path)
    (tmp_path / LEDGER_NAME).unlink()
    monkeypatch.setattr(ledger_file, "MAX_LEDGER_BYTES", 1000)
    with refused("the number of bytes of the ledger", kind=InvalidLedgerError):
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
            name = ledger.next_task_name()
            with refused(f"{name}.classes", class_id, InvalidLedgerError):
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


@pytest.mark.parametrize(
    "error",
    [
        FilesDifferError.of(Path("run"), {"a": "it is missing."}),
        InvalidLedgerError("task_001.classes", [], "classes", "Correct it."),
        RunLockedError("another process", folder=Path("run")),
    ],
)
def test_errors_reach_other_processes_with_their_parts(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# Locks, failures and sudden ends


@needs_locks
def test_the_lock(tmp_path):
    ledger, other = filled(tmp_path), ForgettingLedger.load(tmp_path)
    with ledger.lock(), ledger.lock():
        ledger.append(entry(4, [9]))
        ledger.save()
        with pytest.raises(RunLockedError) as error, other.lock():
            raise AssertionError("must not be entered")
        assert error.value.folder == tmp_path
        with pytest.raises(RunLockedError):
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
    with refused("a task's name", "task_006", InvalidLedgerError):
        fails(6)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError) as error, ledger.changes():
        ledger.revoke("task_001")
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert len(ledger.active_tasks) == 4
    assert ledger.path.read_bytes() == content
    other = ForgettingLedger.load(tmp_path)
    with other.changes():
        other.revoke("task_001")
    with file_refused(tmp_path, "changed"), ledger.changes():
        raise AssertionError("must not be entered")


@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_ledger(tmp_path, monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = filled(tmp_path)
    content = ledger.path.read_bytes()
    ledger.append(entry(4, [9]))
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError) as caught:
        ledger.save()
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(ledger.path))
    assert ledger.path.read_bytes() == content
    assert not list(tmp_path.glob(".staging-*"))
    ledger.save()  # once there is space again
    assert len(ForgettingLedger.load(tmp_path).tasks) == 4


ROOT = Path(ledger_file.__file__).parent.parent
# What the package imports on its own takes seconds and plays no part here, so other processes go round it.
LIGHT_IMPORTS = f"""
import sys, types
sys.modules["gs_lora_peft"] = types.ModuleType("gs_lora_peft")
sys.modules["gs_lora_peft"].__path__ = [{str(ROOT)!r}]
"""

HELPER = """
    import sys
    from gs_lora_peft.ledger.ledger import ForgettingLedger
    from gs_lora_peft.ledger.entry import TaskEntry
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
