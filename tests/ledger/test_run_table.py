"""Requests as text, and the ledger as text."""

import pytest
from errors import refused

from gs_lora_peft.ledger import ForgettingLedger, TaskEntry, format_table, parse_requests


def test_tasks_and_classes_are_split():
    """`;` separates tasks, `,` separates classes, blanks around names do not count."""
    requests = parse_requests("tench, cassette player;school bus")
    assert [list(request.classes) for request in requests] == [["tench", "cassette player"], ["school bus"]]


@pytest.mark.parametrize(("text", "task"), [("", 1), ("3;;7", 2), ("3,;7", 1), (" ", 1)])
def test_an_empty_name_is_refused(text, task):
    """A forgotten name between separators is a mistake, and the message shows where."""
    with refused(f"task {task}", text.split(";")[task - 1]):
        parse_requests(text)


def test_table_has_a_row_per_task(tmp_path):
    """Accuracies in percent, groups as counts, and what is unknown as a dash."""
    ledger = ForgettingLedger.create(tmp_path, base_model={"fingerprint": "sha256:" + "ab" * 32})
    ledger.append(
        TaskEntry(
            name="task_001",
            request={"classes": ["tench"]},
            classes=[0],
            class_names=["tench"],
            started_at="2026-01-01T00:00:00+00:00",
            finished_at="2026-01-01T00:01:00+00:00",
            sizes={"steps": 12},
            groups={"total": 6, "active": ["a", "b"], "zero": ["c", "d", "e", "f"]},
            scores={
                "base": {"acc_all": 0.97, "acc_retain": 0.96},
                "before": {"acc_forget": 0.981},
                "after": {"acc_forget": 0.0, "acc_retain": 0.954},
            },
        )
    )
    title, empty, header, rule, row = format_table(ledger).splitlines()
    assert "97.0 %" in title
    assert not empty
    assert header.split()[:2] == ["task", "to"]
    assert set(rule) == {"-", " "}
    assert row.split() == ["task_001", "tench", "98.1", "0.0", "96.0", "–", "95.4", "–", "–", "2", "of", "6", "12"]
