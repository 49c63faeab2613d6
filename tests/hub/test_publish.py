"""`push_to_hub` through the real client: what leaves, what is kept out, who may, and who was first."""

import json
import shutil
import threading

import hub_cases as cases
import pytest
from client_process import ClientError
from errors import refused
from hub_refusals import ledger_refused
from loopback import COLLEAGUE, OWNER, READER, STRANGER

from gs_lora_peft import ForgettingLedger

ROOT = {"README.md", "forgetting.json", "adapter_config.json", "adapter_model.safetensors"}
PARTS = ("adapter_config.json", "adapter_model.safetensors", "gs_lora_config.json")
FIGURES = {f"figures/{name}.png" for name in ("group_norms", "accuracies", "training_curves")}


def expected_files(*numbers):
    tasks = {f"tasks/task_{number:03d}/{name}" for number in numbers for name in PARTS}
    return ROOT | FIGURES | tasks


def sent(hub):
    """What each commit so far consisted of, by path."""
    commits = [request.json_lines() for request in hub.seen("POST", "/commit/")]
    return [{line["value"]["path"]: line["key"] for line in lines if line["key"] != "header"} for lines in commits]


def tell_tales(folder):
    """Puts files into a run that must never leave the machine."""
    for name in ("training_args.bin", "optimizer.pt", "notes.txt", "faces.json", "person_07.png", "card.md"):
        (folder / name).write_bytes(b"person_07")
        (folder / "tasks/task_001" / name).write_bytes(b"person_07")
    for name in ("logs/task_001", "work/task_004", "figures"):
        (folder / name).mkdir(parents=True)
        (folder / name / "person_07.json").write_text("person_07")


def test_first_push(hub, client, repo_id, run_folder):
    """One commit on a new private repository: what the ledger vouches for, the root adapter, the card, pictures."""
    tell_tales(run_folder)
    url = client("push", OWNER, folder=run_folder, repo_id=repo_id, commit_message="three requests")
    head, first = hub.repo(repo_id).history("main")
    assert url == f"{hub.address}/{repo_id}/commit/{head.oid}"
    assert (head.title, head.parent, hub.repo(repo_id).private) == ("three requests", first.oid, True)
    files = hub.files(repo_id)
    assert files.keys() == expected_files(1, 2, 3)
    local = cases.read(run_folder)
    assert all(files[name] == local[name] for name in files if name.startswith("tasks/") or name == "forgetting.json")
    assert {path for path, file in head.files.items() if file.is_lfs} == {
        path for path in files if path.endswith((".safetensors", ".png"))
    }
    assert not any(b"person_07" in request.body for request in everything_sent(hub))
    assert hub.seen("POST", "/api/validate-yaml")


def everything_sent(hub):
    return [request for method in ("GET", "POST", "PUT", "HEAD") for request in hub.seen(method)]


def test_pushed_again(hub, client, repo_id, short_run, run_folder):
    """After two more requests only what is new is sent; without a change, no commit is made at all."""
    first = client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert client("push", OWNER, folder=short_run, repo_id=repo_id) == first
    assert sent(hub)[1:] == []
    uploads = len(hub.seen("PUT", "/storage/"))
    client("push", OWNER, folder=run_folder, repo_id=repo_id)
    assert sent(hub)[1].keys() == expected_files(1, 2, 3) - expected_files(1) | ROOT | FIGURES
    assert len(hub.seen("PUT", "/storage/")) - uploads == 3 + len(FIGURES)  # two tasks, the root, the pictures
    assert hub.files(repo_id, first[-40:]).keys() == expected_files(1)


def test_revoked(hub, client, repo_id, base, run_folder):
    """A request that was taken back is told of, and its adapter is taken away in the same commit."""
    client("push", OWNER, folder=run_folder, repo_id=repo_id)
    forgetter = cases.make_forgetter(cases.load_base(base), run_folder)
    forgetter.revoke("task_003")
    client("push", OWNER, folder=run_folder, repo_id=repo_id)
    assert hub.files(repo_id).keys() == expected_files(1, 2)
    assert json.loads(hub.files(repo_id)["forgetting.json"])["tasks"][2]["status"] == "revoked"
    assert client("load", OWNER, base=base, repo_id=repo_id, merge=True) == cases.logits(forgetter.model)


@pytest.mark.parametrize("uses_lfs", [True, False])
def test_loaded_from_the_hub(hub, client, repo_id, base, finished, uses_lfs):
    """Through LFS or "regular": all tasks, a prefix, a selection, merged or not, are what the folder gives."""
    hub.storage.uses_lfs = uses_lfs
    folder, live = finished
    client("push", OWNER, folder=folder, repo_id=repo_id)
    assert bool(hub.seen("PUT", "/storage/")) is uses_lfs
    assert client("load", OWNER, base=base, repo_id=repo_id, merge=True) == live
    hub.reset()
    for tasks in (1, 2, ["task_001", "task_003"], 0):
        found = client("load", OWNER, base=base, repo_id=repo_id, tasks=tasks)
        assert found == client("load", base=base, repo_id=folder, tasks=tasks)
    assert not hub.seen("GET", "/resolve/")  # all of it was in the cache


def test_only_the_tasks_asked_for(hub, client, repo_id, base, finished):
    """Of a long sequence only the ledger and the chosen tasks are downloaded; never the root adapter."""
    client("push", OWNER, folder=finished[0], repo_id=repo_id)
    client("load", OWNER, base=base, repo_id=repo_id, tasks=["task_002"])
    paths = {request.path.split("/main/")[-1].split("/", 5)[-1] for request in hub.seen("GET", "/resolve/")}
    assert all("task_002" in path or "forgetting.json" in path for path in paths)
    assert len(hub.seen("GET", "/storage/")) == 1


def test_xet(hub, xet_client, client, repo_id, base, finished):
    """With `hf_xet` weights and pictures go to the Xet store and come from there, checked like all others."""
    pytest.importorskip("hf_xet")
    folder, live = finished
    xet_client("push", OWNER, folder=folder, repo_id=repo_id)
    files = hub.repo(repo_id).at("main").files
    assert {path for path, file in files.items() if file.xet_hash} == {
        path for path in expected_files(1, 2, 3) if path.endswith((".safetensors", ".png"))
    }
    assert xet_client("load", OWNER, base=base, repo_id=repo_id, merge=True) == live
    assert not hub.seen("GET", "/storage/")
    assert client("load", OWNER, base=base, repo_id=repo_id, merge=True) == live
    assert hub.seen("GET", "/storage/")


def test_branch(hub, client, repo_id, base, short_run, finished):
    """`revision` names a branch, made if missing; the main one stays as it was, and each loads as itself."""
    folder, live = finished
    first = client("push", OWNER, folder=short_run, repo_id=repo_id)
    client("push", OWNER, folder=folder, repo_id=repo_id, revision="study/two")
    assert hub.repo(repo_id).at("main").oid == first[-40:]
    assert hub.files(repo_id, "study/two").keys() == expected_files(1, 2, 3)
    assert client("load", OWNER, base=base, repo_id=repo_id, revision="study/two", merge=True) == live
    one = client("load", base=base, repo_id=short_run)
    assert client("load", OWNER, base=base, repo_id=repo_id) == one
    assert client("load", OWNER, base=base, repo_id=repo_id, revision=first[-40:]) == one
    with refused("repo_or_folder", repo_id, ClientError) as caught:
        client("load", OWNER, base=base, repo_id=repo_id, revision="study/three")
    assert "HTTP 404" in caught.value.fix


def test_a_refused_branch_is_not_made(hub, client, base, repo_id, short_run, tmp_path):
    """Whether the run may go there is found out before the branch is made."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    other = cases.forget(base, tmp_path / "other", [["dragonfly"]]).folder
    with ledger_refused(repo_id, "task_001") as caught:
        client("push", OWNER, folder=other, repo_id=repo_id, revision="study")
    assert (caught.value.name, caught.value.value) == ("folder", str(other))
    assert hub.repo(repo_id).branches.keys() == {"main"}


def test_a_gitignore_on_the_hub(hub, client, repo_id, short_run, run_folder):
    """By it the Hub leaves files out of a commit and says nothing: refused before anything is sent."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    hub.put(repo_id, {".gitignore": b"*.safetensors\n"})
    with refused("repo_id", repo_id, ClientError) as caught:
        client("push", OWNER, folder=run_folder, repo_id=repo_id)
    assert ".gitignore" in caught.value.expected
    assert len(sent(hub)) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("max_rank", 0), ("dataset", "a b//c"), ("license", "No Such: thing"), ("revision", "")]
)
def test_bad_options(hub, client, repo_id, short_run, name, value):
    """What is said for the card or of the branch is checked first: no repository is left behind."""
    with pytest.raises(ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id, **{name: value})
    assert "ValueError" in caught.value.kinds
    assert name in caught.value.message
    assert repr(value) in caught.value.message
    assert not hub.has(repo_id)


def test_public(hub, client, repo_id, short_run):
    """The names of forgotten classes do not become public unless that was asked for."""
    hub.create(repo_id)
    with refused("repo_id", repo_id, ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert "private=False" in caught.value.fix
    assert not sent(hub)
    client("push", OWNER, folder=short_run, repo_id=repo_id, private=False)
    assert hub.files(repo_id).keys() == expected_files(1)
    client("push", OWNER, folder=short_run, repo_id=f"{repo_id}-new", private=False)
    assert not hub.repo(f"{repo_id}-new").private


@pytest.mark.parametrize(
    ("token", "name", "blamed", "status"),
    [
        (None, None, "token", None),
        ("hf_nonsense", None, "repo_id", 401),
        (READER, None, "repo_id", 403),
        (STRANGER, None, "repo_id", 403),
        (OWNER, "somebody/else", "repo_id", 403),
        (OWNER, "a/b/c", "repo_id", None),
        (OWNER, "../up", "repo_id", None),
        (OWNER, "", "repo_id", None),
    ],
)
def test_who_may_push(hub, client, repo_id, short_run, token, name, blamed, status):
    """No token, a wrong one, one that may only read, another user's or a malformed name: said, and nothing sent."""
    repo_id = f"me/refused-{token}" if name is None else name
    if name is None:
        hub.create(repo_id, private=True)
    with refused(blamed, None if blamed == "token" else repo_id, ClientError) as caught:
        client("push", token, folder=short_run, repo_id=repo_id)
    assert ("HubRefusalError" in caught.value.kinds, caught.value.status) == (status is not None, status)
    assert "ValueError" in caught.value.kinds
    assert not sent(hub) + hub.seen("PUT", "/storage/")
    assert name is None or not hub.has(name)


def test_private(hub, client, repo_id, base, short_run):
    """Who has no token, or another user's, does not even learn that the repository exists."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    for token, status in ((None, 401), (STRANGER, 404), ("hf_nonsense", 401)):
        with refused("repo_or_folder", repo_id, ClientError) as caught:
            client("load", token, base=base, repo_id=repo_id)
        assert f"HTTP {status}" in caught.value.fix
    assert client("load", READER, base=base, repo_id=repo_id) == client("load", base=base, repo_id=short_run)


def test_a_newer_ledger(hub, client, base, short_run, run_folder, tmp_path):
    """What a colleague has published on top is not overwritten; it can be fetched, continued and pushed."""
    repo_id = "clinic/newer"
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    client("push", COLLEAGUE, folder=run_folder, repo_id=repo_id)
    theirs = hub.repo(repo_id).at("main").oid
    with ledger_refused(repo_id, "task_002") as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert (caught.value.name, caught.value.value) == ("folder", str(short_run))
    assert hub.repo(repo_id).at("main").oid == theirs
    mine = tmp_path / "mine"
    after = client("go_on", OWNER, repo_id=repo_id, base=base, folder=mine, classes=["dragonfly"])
    client("push", OWNER, folder=mine, repo_id=repo_id)
    assert hub.files(repo_id).keys() == expected_files(1, 2, 3, 4)
    assert client("load", COLLEAGUE, base=base, repo_id=repo_id, merge=True) == after


def test_another_history(hub, client, base, repo_id, short_run, tmp_path):
    """A run of other requests, or on another base model, is not published over this one."""
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    other = cases.forget(base, tmp_path / "other", [["dragonfly"]]).folder
    model = cases.load_base(base)
    model.classifier.bias.data += 1
    changed = cases.make_forgetter(model, tmp_path / "changed")
    changed.forget(cases.ForgetRequest(["dragonfly"]))
    for folder, named in ((other, "task_001"), (changed.folder, "base weights")):
        with ledger_refused(repo_id, named) as caught:
            client("push", OWNER, folder=folder, repo_id=repo_id)
        assert (caught.value.name, caught.value.value) == ("folder", str(folder))
    assert len(sent(hub)) == 1


def test_a_race(hub, client, xet_client, short_run, run_folder):
    """Two processes push at once: one is first, the other is told so and overwrites nothing."""
    repo_id = "clinic/race"
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    hub.fault("POST", "/commit/", action=lambda: xet_client("push", COLLEAGUE, folder=run_folder, repo_id=repo_id))
    shutil.copytree(run_folder / "tasks/task_002", short_run / "tasks/task_002")
    ledger, longer = ForgettingLedger.load(short_run), ForgettingLedger.load(run_folder)
    with ledger.changes():
        ledger.append(longer.tasks[1])
    with refused("repo_id", repo_id, ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert (caught.value.kinds[0], caught.value.status) == ("HubRefusalError", 412)
    assert hub.files(repo_id).keys() == expected_files(1, 2, 3)
    with ledger_refused(repo_id, "task_003") as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert (caught.value.name, caught.value.value) == ("folder", str(short_run))


def test_two_that_say_the_same(hub, client, xet_client, repo_id, short_run):
    """Two processes that push the same run at once both end well, with one commit."""
    hub.create(repo_id, private=True)
    clients, results = [client, xet_client], []
    meet = threading.Barrier(2, timeout=60)
    hub.fault("POST", "/preupload/", times=2, action=meet.wait)

    def push(one):
        results.append(one("push", OWNER, folder=short_run, repo_id=repo_id))

    threads = [threading.Thread(target=push, args=[one]) for one in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == len(hub.repo(repo_id).history("main")) == 2


def test_changed_files(hub, client, repo_id, short_run):
    """Hashes are checked before the first request."""
    (short_run / "tasks/task_001/adapter_model.safetensors").write_bytes(b"other!!")
    with ledger_refused("tasks/task_001/adapter_model.safetensors"):
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert not everything_sent(hub)


def test_no_run(hub, client, repo_id, tmp_path):
    """A folder without a ledger is no run."""
    with ledger_refused(str(tmp_path / "forgetting.json")):
        client("push", OWNER, folder=tmp_path, repo_id=repo_id)
    assert not everything_sent(hub)
