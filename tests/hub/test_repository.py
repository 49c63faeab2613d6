"""What would be published, built in a folder: everything a stranger needs, and nothing that nobody vouches for."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_cases as cases
import pytest
from client_process import ClientError
from errors import refused
from hub_refusals import ledger_refused
from loopback import OWNER

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.hub import export_forgotten, publish as repository, stage_repository, verify_repository
from gs_lora_peft.hub.composite import write_composite
from gs_lora_peft.io import sha256_of
from gs_lora_peft.ledger.schema import with_digest

ROOT = {"README.md", "forgetting.json", "adapter_config.json", "adapter_model.safetensors"}


def change_ledger(folder, change):
    """Rewrites the ledger of a run with a digest that fits."""
    path = folder / "forgetting.json"
    data = json.loads(path.read_text())
    del data["schema_version"], data["digest"]
    change(data)
    path.write_text(json.dumps(with_digest(data)))


def test_the_folder(finished, tmp_path):
    """The tasks and the ledger byte for byte, the sum in the root, card and pictures; the run is left as it was."""
    folder = finished[0]
    before = cases.read(folder)
    staged = stage_repository(folder, tmp_path / "new" / "out", "me/clinic", dataset="me/faces", license="mit")
    found = cases.read(staged.folder)
    assert sorted(found) == staged.files
    assert found["forgetting.json"] == before["forgetting.json"]
    tasks = {name for name in found if name.startswith("tasks/")}
    assert tasks == {name for entry in staged.ledger.tasks for name in entry.files}
    assert all(found[name] == before[name] for name in tasks)
    others = found.keys() - tasks - ROOT
    assert others
    assert all(name.startswith("figures/") and name.endswith(".png") for name in others)
    card = found["README.md"].decode()
    assert all(text in card for text in ("me/clinic", "- me/faces", "license: mit", *others))
    assert verify_repository(staged.folder).problems == []
    assert cases.read(folder) == before


def test_the_same_run_gives_the_same_bytes(finished, tmp_path):
    """In another process too, so that publishing again sends nothing."""
    here = stage_repository(finished[0], tmp_path / "here", "me/clinic").folder
    code = "import sys; from gs_lora_peft.hub import stage_repository; stage_repository(*sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", code, str(finished[0]), str(tmp_path / "there"), "me/clinic"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
        timeout=600,
    )
    assert cases.read(here) == cases.read(tmp_path / "there")


def test_a_revoked_task(base, run_folder, tmp_path):
    """Its entry stays in the ledger, its adapter stays on the machine."""
    cases.make_forgetter(cases.load_base(base), run_folder).revoke("task_002")
    staged = stage_repository(run_folder, tmp_path / "out")
    assert {name.split("/")[1] for name in staged.files if name.startswith("tasks/")} == {"task_001", "task_003"}
    assert [entry.status for entry in staged.ledger.tasks] == ["done", "revoked", "done"]
    assert verify_repository(staged.folder).problems == []


def unlisted_kind(folder):
    (folder / "tasks/task_001/training_args.bin").write_bytes(b"pickle")
    digest = sha256_of(folder / "tasks/task_001/training_args.bin")
    change_ledger(folder, lambda d: d["tasks"][0]["files"].update({"tasks/task_001/training_args.bin": digest}))


def file_of_another(folder):
    name = "tasks/task_002/adapter_config.json"
    change_ledger(folder, lambda d: d["tasks"][0]["files"].update({name: sha256_of(folder / name)}))


def changed(folder):
    path = folder / "tasks/task_002/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def linked(folder):
    path = folder / "tasks/task_002/adapter_model.safetensors"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (unlisted_kind, "tasks/task_001/training_args.bin"),
        (file_of_another, "tasks/task_002/adapter_config.json"),
        (changed, "tasks/task_002/adapter_model.safetensors"),
        (linked, "tasks/task_002/adapter_model.safetensors"),
        (lambda folder: (folder / "forgetting.json").unlink(), "forgetting.json"),
    ],
)
def test_runs_that_are_refused(run_folder, tmp_path, damage, named):
    """What the ledger does not vouch for, or vouches for and should not, is not published; nothing is written."""
    damage(run_folder)
    with ledger_refused(named):
        stage_repository(run_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "elsewhere") == ["run"]


def test_a_folder_that_holds_files(short_run, tmp_path):
    """It is not overwritten."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.md").write_text("mine")
    with pytest.raises(ValueError) as caught:
        stage_repository(short_run, tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert cases.read(tmp_path / "out") == {"mine.md": b"mine"}


def test_a_failure_leaves_nothing(short_run, tmp_path, monkeypatch):
    """A full disk at the last file takes the others with it."""
    write = repository.write_bytes_atomic

    def full(path, data, **options):
        if path.name == "README.md":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(repository, "write_bytes_atomic", full)
    with pytest.raises(OSError) as caught:
        stage_repository(short_run, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short"]


def test_somebody_elses_model(hub, client, repo_id, short_run):
    """A repository that holds something else is not touched; one that was only made on the Hub's pages is taken."""
    hub.create(repo_id, {"config.json": b"{}", "model.safetensors": b"x" * 20}, private=True)
    with refused("repo_id", repo_id, ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert "config.json" in caught.value.fix
    assert hub.files(repo_id).keys() == {"config.json", "model.safetensors"}
    hub.create(f"{repo_id}-made", {"README.md": b"# mine"}, private=True)
    client("push", OWNER, folder=short_run, repo_id=f"{repo_id}-made")
    assert hub.files(f"{repo_id}-made").keys() > ROOT


def test_own_files_of_others_stay(hub, client, repo_id, short_run, base):
    """What a user adds to a published run beside our files is left alone, while stale pictures of ours go."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    own = ("LICENSE", "notes/a.md", "tasks/task_009/x.json")
    stale = ("figures/old.png", "tasks/task_009/adapter_config.json")
    hub.put(repo_id, dict.fromkeys([*own, *stale], b"{}"))
    ledger = ForgettingLedger.load(short_run)
    with ledger.changes():
        ledger.revoke("task_001", reason="asked for")
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    files = hub.files(repo_id)
    assert {name for name in files if name.startswith("tasks/") or name in own} == set(own)
    assert not files.keys() & set(stale)


def test_verified_from_the_hub(hub, client, repo_id, finished):
    """What was published can be fetched whole and checked; a file that a user slipped in is found."""
    client("push", OWNER, folder=finished[0], repo_id=repo_id)
    assert client("verify", OWNER, repo_id=repo_id) == []
    hub.put(repo_id, {"tasks/task_001/adapter_model_2.safetensors": b"x", "tasks/task_001/adapter_model.bin": b"x"})
    (problem,) = client("verify", OWNER, repo_id=repo_id)
    assert problem.startswith("tasks/task_001/adapter_model_2.safetensors")


@pytest.mark.parametrize("name", ["forgetting.json", "tasks/task_001/adapter_model.safetensors"])
def test_what_came_wrong_is_not_kept(hub, new_client, client, repo_id, base, short_run, name):
    """A file that was changed on its way is refused, and asked for again the next time."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    content = hub.files(repo_id)[name]
    hub.tamper(name, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    fresh = new_client()
    for _ in range(2):
        with ledger_refused(name):
            fresh("load", OWNER, base=base, repo_id=repo_id)
    hub.reset()
    assert fresh("load", OWNER, base=base, repo_id=repo_id) == fresh("load", base=base, repo_id=short_run)


def test_a_damaged_ledger_on_the_hub(hub, client, repo_id, short_run):
    """What cannot be read may be another user's newer run: it is not overwritten."""
    hub.create(repo_id, {"forgetting.json": b"{}"}, private=True)
    with ledger_refused("schema_version", "None"):
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert hub.files(repo_id) == {"forgetting.json": b"{}"}


def test_a_run_that_goes_on_meanwhile(finished, run_folder, tmp_path, monkeypatch):
    """The ledger that is published is the one that was read: a task that ends meanwhile comes with the next push."""
    ledger = ForgettingLedger.load(run_folder)
    with ledger.changes():
        ledger.tasks = ledger.tasks[:2]

    def go_on(*arguments, **options):
        shutil.copyfile(finished[0] / "forgetting.json", run_folder / "forgetting.json")
        return write_composite(*arguments, **options)

    monkeypatch.setattr(repository, "write_composite", go_on)
    staged = stage_repository(run_folder, tmp_path / "out")
    assert [entry.name for entry in staged.ledger.tasks] == ["task_001", "task_002"]
    assert not verify_repository(tmp_path / "out").problems


def test_a_file_that_changes_meanwhile(run_folder, tmp_path, monkeypatch):
    """What is published is what was checked, not what lay there a moment before."""
    copy = shutil.copyfile

    def damaged(source, target):
        copy(source, target)
        if Path(target).name == "gs_lora_config.json":
            Path(target).write_text("{}")

    monkeypatch.setattr(repository.shutil, "copyfile", damaged)
    with ledger_refused("gs_lora_config.json"):
        stage_repository(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_working_directory(run_folder, tmp_path, monkeypatch, name):
    """A folder is put into place as a whole: a process in it would be left in a folder that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for write in (stage_repository, export_forgotten):
        with pytest.raises(ValueError) as caught:
            write(run_folder, name)
        assert f"'{name}'" in str(caught.value)
    assert not list((tmp_path / "here").iterdir())
