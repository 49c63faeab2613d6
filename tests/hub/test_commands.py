"""`gs-lora` with real runs: what it writes, and what it exchanges with the Hub."""

import json
import re
import subprocess
import sys
from pathlib import Path

import hub_cases as cases
import pytest
from errors import refused
from hub_refusals import ledger_refused
from loopback import OWNER, STRANGER
from transformers import AutoModelForImageClassification

from gs_lora_peft import ForgettingLedger
from gs_lora_peft.cli import main
from gs_lora_peft.hub import export_forgotten

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def call(client):
    """Calls `gs-lora` in the client's process with a token; gives its exit code and what it printed."""

    def call(*arguments, token=OWNER):
        return client("command_line", token, arguments=[str(argument) for argument in arguments])

    return call


@pytest.fixture
def here(capsys):
    """Calls `gs-lora` in this process, which knows no Hub."""

    def here(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return here


# Without the Hub


def test_export(here, finished, tmp_path):
    """One task comes out byte for byte, several as their sum, and a repository as it would be published."""
    folder, _ = finished
    code, out, _ = here("export", folder, tmp_path / "one", "--tasks", "task_002")
    assert (code, out) == (0, f"{tmp_path / 'one'}\n")
    names = ["adapter_config.json", WEIGHTS]
    task = cases.read(folder / "tasks" / "task_002")
    assert cases.read(tmp_path / "one") == {name: task[name] for name in names}
    for tasks in (["--tasks", "2"], ["--tasks", "task_001, task_003", "--max-rank", "1"], []):
        code, out, _ = here("export", folder, tmp_path / "sum", *tasks, "--json")
        assert code == 0
        document = json.loads(out)
        assert document["folder"] == str(tmp_path / "sum")
        assert document["rank"] == (1 if "--max-rank" in tasks else document["rank"])
        assert bool(document["recompressed"]) == ("--max-rank" in tasks)
        (tmp_path / "sum").rename(tmp_path / f"sum-{len(tasks)}")
    code, _, _ = here(
        "export", folder, tmp_path / "all", "--repository", "--repo-id", "clinic/run", "--license", "mit"
    )
    assert code == 0
    assert {name: cases.read(tmp_path / "all")[name] for name in names} == cases.read(tmp_path / "sum-0")
    assert "clinic/run" in (tmp_path / "all" / "README.md").read_text()
    assert "license: mit" in (tmp_path / "all" / "README.md").read_text()
    assert here("verify", tmp_path / "all")[0] == 0


def test_export_writes_nothing_for_a_mistake(finished, run_folder, tmp_path):
    """A file that is not the one the ledger vouches for is not exported, nor is anything overwritten."""
    (run_folder / "tasks" / "task_002" / WEIGHTS).write_bytes(b"")
    with ledger_refused(f"tasks/task_002/{WEIGHTS}"):
        export_forgotten(run_folder, tmp_path / "out")
    before = cases.read(run_folder)
    with pytest.raises(ValueError) as caught:
        export_forgotten(finished[0], run_folder)
    assert str(run_folder) in str(caught.value)
    assert cases.read(run_folder) == before
    assert not (tmp_path / "out").exists()
    with refused("tasks", []):
        export_forgotten(run_folder, tmp_path / "out", tasks=[])
    assert not (tmp_path / "out").exists()
    export_forgotten(run_folder, tmp_path / "out", tasks=1)
    assert cases.read(tmp_path / "out")[WEIGHTS] == (finished[0] / "tasks" / "task_001" / WEIGHTS).read_bytes()


def test_verify(here, base, run_folder):
    """0 if all is well; 1 with every problem named, of files and of the base model."""
    code, out, _ = here("verify", run_folder, "--base-model", base)
    assert code == 0
    assert "3 task(s) in effect, 9 file(s) with the right hashes" in out
    assert "The base model was compared" in out
    (run_folder / "tasks" / "task_002" / WEIGHTS).write_bytes(b"")
    (run_folder / "tasks" / "task_003" / "gs_lora_config.json").unlink()
    code, out, _ = here("verify", run_folder, "--json")
    document = json.loads(out)
    assert (code, document["ok"], len(document["problems"])) == (1, False, 2)
    code, out, _ = here("verify", run_folder)
    assert code == 1
    assert out.startswith("2 problem(s):\n")
    assert "tasks/task_003/gs_lora_config.json" in out


def test_verify_another_base_model(here, base, finished, tmp_path):
    """Other weights are a problem; no weights at all are an error."""
    model = cases.load_base(base)
    model.classifier.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    code, out, _ = here("verify", finished[0], "--base-model", tmp_path / "other", "--json")
    assert code == 1
    assert "base model" in json.loads(out)["problems"][0]
    code, out, _ = here("verify", finished[0], "--base-model", tmp_path / "nothing", "--json")
    assert code == 1
    assert "nothing" in json.loads(out)["error"]["message"]


def test_merge(here, base, finished, tmp_path):
    """The merged model is the one that the run has; progress and warnings stay out of the result."""
    code, out, _ = here("merge", finished[0], tmp_path / "model", "--base-model", base, "--json")
    assert code == 0
    assert json.loads(out) == {"folder": str(tmp_path / "model"), "repo_id": None}
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert cases.logits(merged) == finished[1]
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((base / name).read_bytes())
    code, out, err = here("merge", finished[0], tmp_path / "second", "--base-model", tmp_path / "bare", "--tasks", "1")
    assert (code, out) == (0, f"{tmp_path / 'second'}\n")
    assert "Warning: no processor was found" in err


# With the Hub


@pytest.mark.slow
def test_from_hand_to_hand(hub, call, repo_id, finished, tmp_path):
    """Pushed, shown, checked, pulled and merged by name: a stranger gets the very model."""
    folder, logits = finished
    code, url, err = call("push", folder, repo_id, "-m", "three faces")
    assert (code, err) == (0, "")
    assert url.strip() == f"{hub.address}/{repo_id}/commit/{hub.repo(repo_id).at('main').oid}"
    assert hub.repo(repo_id).private
    assert hub.repo(repo_id).at("main").title == "three faces"
    code, out, _ = call("push", folder, repo_id, "--json")
    assert (code, json.loads(out)) == (0, {"url": url.strip()})
    code, out, _ = call("show", repo_id)
    assert code == 0
    assert "cassowary" in out
    assert not hub.seen("GET", WEIGHTS)
    assert json.loads(call("show", repo_id, "--json")[1])["ledger"] == ForgettingLedger.load(folder).to_dict()
    code, out, _ = call("verify", repo_id, "--base-model", cases.BASE_ID, "--json")
    document = json.loads(out)
    assert (code, document["problems"], document["root_checked"], document["base_checked"]) == (0, [], True, True)
    code, out, _ = call("pull", repo_id, tmp_path / "pulled")
    assert (code, out) == (0, f"{tmp_path / 'pulled'}\n")
    pulled, own = cases.read(tmp_path / "pulled"), cases.read(folder)
    assert pulled == {name: own[name] for name in own if name in pulled}
    assert {name for name in own if name.startswith("tasks/")} < set(pulled)
    code, _, err = call("merge", repo_id, tmp_path / "model", "--base-model", cases.BASE_ID)
    assert code == 0, err
    assert cases.logits(AutoModelForImageClassification.from_pretrained(tmp_path / "model")) == logits


def test_push_publishes_what_export_shows(hub, call, repo_id, run_folder, tmp_path):
    """The preview is the repository."""
    options = ["--withhold-classes", "--max-rank", "2", "--license", "mit", "--dataset", "me/faces"]
    code, _, err = call("export", run_folder, tmp_path / "out", "--repository", "--repo-id", repo_id, *options)
    assert code == 0, err
    code, _, err = call("push", run_folder, repo_id, *options)
    assert code == 0, err
    assert hub.files(repo_id) == cases.read(tmp_path / "out")


def test_withheld(hub, call, repo_id, run_folder, tmp_path):
    """No command names a class of a withheld run; it cannot be continued elsewhere, and says why."""
    assert call("push", run_folder, repo_id, "--withhold-classes")[0] == 0
    said = [*call("show", repo_id)[1:], *call("show", repo_id, "--json")[1:], *call("verify", repo_id)[1:]]
    code, out, err = call("pull", repo_id, tmp_path / "pulled")
    assert (code, out) == (1, "")
    assert repo_id in err
    assert not (tmp_path / "pulled").exists()
    assert "withheld" in said[0]
    assert not [name for name in cases.NAMES for text in (*said, err) if name in text]
    assert call("pull", repo_id, run_folder)[0] == 0  # the owner's folder, which knows them


def test_revoked_tasks_leave_the_repository(hub, call, here, repo_id, run_folder):
    """A revocation that was not measured is published with the next push."""
    assert call("push", run_folder, repo_id)[0] == 0
    assert here("revoke", run_folder, "task_002", "--reason", "consent renewed")[0] == 0
    code, _, err = call("push", run_folder, repo_id)
    assert code == 0, err
    assert not [name for name in hub.files(repo_id) if "task_002" in name]
    assert call("verify", repo_id)[0] == 0
    assert "consent renewed" in call("show", repo_id)[1]


@pytest.mark.parametrize("token", [None, STRANGER])
def test_private_runs(hub, call, repo_id, finished, tmp_path, token):
    """Who may not see a run learns that from every command, as text or as JSON, and nothing is left behind."""
    hub.create(repo_id, cases.read(finished[0]), private=True)
    for arguments in (["show"], ["verify"], ["pull", tmp_path / "out"], ["export", tmp_path / "out"]):
        code, out, err = call(arguments[0], repo_id, *arguments[1:], "--json", token=token)
        assert (code, err) == (1, "")
        error = json.loads(out)["error"]
        assert error["type"] in ("HubRefusalError", "InvalidInputError")
        assert repo_id in error["message"]
        assert f"HTTP {401 if token is None else 404}" in error["message"]
    code, out, err = call("push", finished[0], repo_id, token=token)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert not (tmp_path / "out").exists()
    assert not hub.seen("POST", "/commit/")


def test_public_on_demand_alone(hub, call, repo_id, finished):
    """A public repository takes the word `--public`."""
    hub.create(repo_id)
    code, _, err = call("push", finished[0], repo_id)
    assert code == 1
    assert repo_id in err
    assert "private=False" in err
    assert not hub.seen("POST", "/commit/")
    assert call("push", finished[0], repo_id, "--public")[0] == 0
    assert "forgetting.json" in hub.files(repo_id)


def test_revisions(hub, call, repo_id, first_task, finished, tmp_path):
    """A branch is written to, and an earlier commit read from."""
    first = call("push", first_task[0], repo_id, "--revision", "dev")[1].strip()[-40:]
    assert hub.files(repo_id, "main") == {}
    shown = call("show", repo_id, "--revision", first)[1]
    assert re.search(r"Tasks\s+1, of which 1 in effect", shown)
    code, out, _ = call("export", repo_id, tmp_path / "out", "--revision", "dev", "--json")
    assert code == 0
    assert json.loads(out)["recompressed"] == []
    assert cases.read(tmp_path / "out")[WEIGHTS] == (first_task[0] / "tasks" / "task_001" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_process_of_its_own(hub, client, repo_id, finished):
    """As a script sees it: stdout is the JSON document alone, whatever bars and warnings appear elsewhere."""
    environment = {**client.environment, "HF_TOKEN": OWNER, "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
    command = [Path(sys.executable).with_name("gs-lora"), "push", finished[0], repo_id, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert repo_id in json.loads(result.stdout)["url"]
    assert hub.files(repo_id)["forgetting.json"] == (finished[0] / "forgetting.json").read_bytes()


def test_a_folder_has_no_revision(call, finished, tmp_path):
    """A revision that was asked for is never ignored, although a folder hides the repository."""
    merged = ["--base-model", cases.BASE_ID]
    for command in (["show"], ["verify"], ["export", tmp_path / "out"], ["merge", tmp_path / "out", *merged]):
        code, out, err = call(command[0], finished[0], *command[1:], "--revision", "abc")
        assert (code, out) == (1, "")
        assert str(finished[0]) in err
        assert "'abc'" in err
    assert not (tmp_path / "out").exists()
