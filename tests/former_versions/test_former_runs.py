"""What former versions wrote can be shown, checked, loaded, continued, redone and revoked."""

import json
import shutil
from pathlib import Path

import former_cases as cases
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from gs_lora_peft import ForgetRequest, ForgettingLedger, load_forgotten, merge_forgotten, verify_repository
from gs_lora_peft.cli import main
from gs_lora_peft.runs import OtherSettingsError

DATA = Path(__file__).parent / "data"
IN_EFFECT = ["task_001", "task_003"]
FOLDERS = ("run", "repository")


@pytest.fixture(scope="module", params=sorted(path.name for path in DATA.iterdir()))
def version(request):
    """Folder with what one former version wrote. Not to be changed by a test."""
    return DATA / request.param


@pytest.fixture
def run(version, tmp_path):
    """The run of the former version, for a test to work in."""
    return shutil.copytree(version / "run", tmp_path / "run")


@pytest.fixture
def forgetter(version, run):
    return cases.make_forgetter(version / "base", run)


@pytest.fixture
def base(version):
    return cases.load_base(version / "base")


def stored(version, name):
    """Logits that the former version computed, and whether products of matrices are the same here to the last bit."""
    with safe_open(version / "logits.safetensors", "pt") as file:
        return file.get_tensor(name), file.metadata()["arithmetic"] == cases.arithmetic()


def assert_as_then(model, version, name):
    found, (expected, to_the_bit) = cases.logits(model), stored(version, name)
    if to_the_bit:
        assert torch.equal(found, expected)
    # Another processor adds up in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def tasks_in(folder):
    return json.loads((folder / "forgetting.json").read_text("utf-8"))["tasks"]


def assert_sound(version, run, forgetter):
    """The run is what its ledger says, and loading it gives the model at hand."""
    report = verify_repository(run, version / "base")
    assert (report.problems, report.base_checked) == ([], True)
    assert report.tasks == [entry.name for entry in forgetter.ledger.active_tasks]
    loaded = load_forgotten(cases.load_base(version / "base"), run, merge=True)
    assert torch.equal(cases.logits(loaded), cases.logits(forgetter.model))


def test_the_stored_files_are_small_and_safe(version):
    """The guard of the repository: no pickles, and nothing that makes a clone heavy."""
    files = [path for path in version.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 150_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".lock"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_show(version, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["show", str(version / folder), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert list(document["tasks"]) == IN_EFFECT
    assert document["ledger"]["tasks"] == tasks_in(version / folder)
    with pytest.raises(SystemExit) as end:
        main(["show", str(version / folder)])
    assert end.value.code == 0
    assert "revoked" in capsys.readouterr().out


@pytest.mark.parametrize("folder", FOLDERS)
def test_verify(version, folder):
    report = verify_repository(version / folder, version / "base")
    assert report.problems == []
    assert (report.tasks, report.base_checked) == (IN_EFFECT, True)
    assert report.root_checked == (folder == "repository")
    assert report.files


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("base", {"tasks": 0}), ("merged", {"merge": True}), ("attached", {}), ("first", {"tasks": 1, "merge": True})],
)
def test_load(version, folder, base, name, options):
    assert_as_then(load_forgotten(base, version / folder, **options), version, name)


def test_stock_peft_loads_what_was_published(version, base):
    found = cases.logits(PeftModel.from_pretrained(base, version / "repository"))
    torch.testing.assert_close(found, stored(version, "merged")[0], rtol=1e-5, atol=1e-5)


def test_merge(version, tmp_path):
    merge_forgotten(version / "base", version / "run", tmp_path / "merged")
    assert_as_then(cases.load_base(tmp_path / "merged"), version, "merged")


def test_the_ledger_is_written_as_it_was(run):
    """What this version does not know, or knows in addition, changes no entry of an earlier task."""
    before = tasks_in(run)
    ledger = ForgettingLedger.load(run)
    with ledger.changes():
        ledger.revoke("task_003", reason="a test")
    assert tasks_in(run)[:2] == before[:2]
    assert {**tasks_in(run)[2], "status": "done", "revocation": None} == {**before[2], "revocation": None}


def test_go_on(version, run, forgetter):
    """The next request builds on what was forgotten then."""
    before = tasks_in(run)
    assert_as_then(forgetter.model, version, "merged")
    entry = forgetter.forget(ForgetRequest(["dragonfly"]))
    assert (entry.name, entry.scores["after"]["acc_old"] is not None) == ("task_004", True)
    assert tasks_in(run)[:3] == before
    assert_sound(version, run, forgetter)


def test_redo(version, run, forgetter):
    before = tasks_in(run)
    entry = forgetter.redo()
    assert (entry.name, entry.class_names) == ("task_004", ["flamingo"])
    assert [task["status"] for task in tasks_in(run)] == ["done", "revoked", "revoked", "done"]
    assert tasks_in(run)[:2] == before[:2]
    assert_sound(version, run, forgetter)


@pytest.mark.parametrize("task", IN_EFFECT)
def test_revoke(version, run, forgetter, task):
    entry = forgetter.revoke(task, reason="a test")
    assert entry.revocation["scores_after"] is not None
    assert [entry.name for entry in forgetter.ledger.active_tasks] == [name for name in IN_EFFECT if name != task]
    assert_sound(version, run, forgetter)


def test_the_same_requests_are_done(run, forgetter):
    """Settings that the old ledger does not have are no difference, and nothing is trained or written."""
    before = (run / "forgetting.json").read_bytes()
    done = forgetter.run(cases.requests([cases.REQUESTS[0], cases.REQUESTS[2]]))
    assert [entry.name for entry in done] == IN_EFFECT
    assert (run / "forgetting.json").read_bytes() == before


def test_of_the_same_requests_the_revoked_one_is_carried_out(version, run, forgetter):
    before = tasks_in(run)
    names = [entry.name for entry in forgetter.run(cases.requests())]
    assert names == ["task_001", "task_004", "task_003"]
    assert tasks_in(run)[:3] == before
    assert_sound(version, run, forgetter)


def test_settings_that_the_old_ledger_has_are_compared(version, run):
    """Silence about unknown settings does not hide a known one that is another."""
    forgetter = cases.make_forgetter(version / "base", run, args=cases.make_args(learning_rate=0.04))
    with pytest.raises(OtherSettingsError) as error:
        forgetter.run(cases.requests([cases.REQUESTS[0], cases.REQUESTS[2]]))
    assert error.value.differences == {name: {"learning_rate": (0.05, 0.04)} for name in IN_EFFECT}
