"""A run folder of which a part is a symbolic link: refused wherever it is used, and what it leads to is left alone."""

import pytest
import run_cases as cases
from test_forgetter import never_trains

from gs_lora_peft import ForgetRequest, load_forgotten
from gs_lora_peft.cli.commands import revoke
from gs_lora_peft.hub import stage_repository
from gs_lora_peft.ledger import ForgettingLedger
from gs_lora_peft.ledger.errors import LinkedRunError
from gs_lora_peft.ledger.request import utc_now
from gs_lora_peft.runs.workspace import Start, Workspace, remove_other_workspaces

PARTS = [
    "work",
    "work/task_002",
    "work/task_001",
    "work/task_002/checkpoint-4",
    "logs",
    "logs/task_001",
    "tasks",
    "tasks/task_002",
    "forgetting.json",
    "withheld.key",
]


def linked(folder, part, precious):
    """Puts a link in the place of a part of a folder, to what was there or to folders of the same names."""
    path = folder / part
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in ("task_001", "task_002/checkpoint-4", "runs"):
        (precious / name).mkdir(parents=True)
        (precious / name / "file").write_text("mine")
    if path.exists():
        path.rename(precious / "moved")
        path.symlink_to(precious / "moved")
    else:
        path.symlink_to(precious)


@pytest.mark.parametrize("part", PARTS)
def test_links_are_refused_and_never_followed(base, data, one_task, tmp_path, monkeypatch, part):
    """Opened before or after the link came, read, written, cleaned up or published: one error, nothing touched."""
    never_trains(monkeypatch)
    precious = tmp_path / "precious"
    forgetter = cases.make_forgetter(base, one_task, data)
    linked(one_task, part, precious)
    before = cases.snapshot(precious)
    state = cases.weights(forgetter.model)
    model = cases.load_base(base)
    for action in (
        lambda: forgetter.forget(ForgetRequest([2])),
        lambda: forgetter.run(cases.requests(["bumblebee"], [2])),
        lambda: forgetter.revoke("task_001"),
        forgetter.redo,
        forgetter.discard_unfinished,
        lambda: cases.make_forgetter(model, one_task, data),
        lambda: load_forgotten(model, one_task),
        lambda: ForgettingLedger.load(one_task),
        lambda: revoke(one_task, "task_001"),
        lambda: stage_repository(one_task, tmp_path / "out"),
    ):
        with pytest.raises(LinkedRunError) as error:
            action()
        assert error.value.folder == one_task
        assert str(one_task / part) in str(error.value)
        assert cases.snapshot(precious) == before
    assert cases.same(cases.weights(forgetter.model), state)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["work", "tasks", "logs"])
def test_a_new_folder_with_a_link(base, data, tmp_path, part):
    """A folder without a ledger is no exception."""
    (tmp_path / "run").mkdir()
    linked(tmp_path / "run", part, tmp_path / "precious")
    before = cases.snapshot(tmp_path / "precious")
    with pytest.raises(LinkedRunError):
        cases.make_forgetter(base, tmp_path / "run", data)
    assert cases.snapshot(tmp_path / "precious") == before


@pytest.mark.parametrize("part", ["work", "work/task_001", "work/task_002"])
def test_the_working_folder_by_itself(tmp_path, part):
    """No step of its life removes, moves or writes anything through a link, should one come in between."""
    linked(tmp_path / "run", part, tmp_path / "precious")
    (tmp_path / "precious" / "task_002" / "checkpoint-4" / "file").unlink()
    before = sorted((tmp_path / "precious").rglob("*"))  # empty folders are precious, too
    workspace = Workspace(tmp_path / "run" / "work" / "task_002")
    with pytest.raises(LinkedRunError):
        workspace.begin({}, Start({}, utc_now()))
    logs = tmp_path / "run" / "logs" / "task_002"
    for step in (
        workspace.fail,
        lambda: workspace.finish(logs),
        workspace.remove_if_empty,
        lambda: remove_other_workspaces(workspace.path),
    ):
        step()
        assert sorted((tmp_path / "precious").rglob("*")) == before


def test_a_run_behind_a_link(base, data, one_task, tmp_path):
    """The folder as a whole may be a link, for instance to a larger disk."""
    (tmp_path / "alias").symlink_to(one_task)
    forgetter = cases.make_forgetter(base, tmp_path / "alias", data)
    assert forgetter.forget(ForgetRequest([2])).name == "task_002"
    assert (tmp_path / "alias").is_symlink()
    assert not (one_task / "work").exists()
