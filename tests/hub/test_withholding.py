"""What was forgotten can be kept back: nothing that leaves names it, and its owner can prove it later."""

import json
import re
import stat

import hub_cases as cases
import pytest
from client_process import ClientError
from loopback import OWNER

from gs_lora_peft import ForgetRequest, ForgettingLedger, LedgerError
from gs_lora_peft.hub import is_proof, request_proof, stage_repository
from gs_lora_peft.hub.withholding import withheld_ledger, withholding_key
from gs_lora_peft.sequence import TaskEntry

KEY = bytes(range(32))
SECRETS = ("because of Ann", "case 4711", "wrong person")


@pytest.fixture(scope="module")
def telling(base, tmp_path_factory):
    """A run whose ledger tells as much as one can: notes, numbers, reasons, and a task that was revoked."""
    folder = tmp_path_factory.mktemp("telling") / "run"
    forgetter = cases.make_forgetter(cases.load_base(base), folder)
    forgetter.forget(ForgetRequest([cases.NAMES[2]], note=SECRETS[0], request_id=SECRETS[1]))
    forgetter.forget(ForgetRequest([cases.NAMES[0], 4]))
    forgetter.revoke("task_001", reason=SECRETS[2])
    return folder


@pytest.fixture
def told(telling, tmp_path):
    """The same, for a test to work in."""
    import shutil

    return shutil.copytree(telling, tmp_path / "told")


def leaks(files):
    """Names and free text of the run found in contents or paths."""
    words = [word.lower().encode() for word in (*cases.NAMES, *SECRETS)]
    return [
        (path, word) for path, content in files.items() for word in words if word in path.encode() + content.lower()
    ]


def keys(value):
    """All keys of nested JSON."""
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in keys(item)}
    return {key for item in value for key in keys(item)} if isinstance(value, list) else set()


def test_the_whole_upload(hub, client, repo_id, told):
    """No class by name or id, no number of samples, no note and no reason, in any byte of any file that leaves."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    files = hub.files(repo_id)
    assert {"README.md", "forgetting.json", "figures/accuracies.png", "figures/training_curves.png"} <= files.keys()
    assert not leaks(files)
    assert not leaks({r.path: r.body for method in ("GET", "POST", "PUT") for r in hub.seen(method)})
    assert leaks(cases.read(told))  # the words are those of the run
    ledger = json.loads(files["forgetting.json"])
    counting = {"forget", "retain", "steps", "shots", "train_data", "evaluation_data"}
    assert not [key for key in keys(ledger) if key.startswith("n_") or key in counting]
    assert all(task["classes"] is task["class_names"] is None for task in ledger["tasks"])
    assert ledger["label_names"] is None
    assert ledger["tasks"][0]["revocation"]["reason"] is None
    request = ledger["tasks"][1]["request"]
    assert request.keys() == {"withheld", "digest", "requested_at"}
    assert re.fullmatch("hmac-sha256:[0-9a-f]{64}", request["digest"])
    key = (told / "withheld.key").read_bytes()
    assert not any(key in content or bytes.fromhex(key.decode()) in content for content in files.values())


def test_the_same_model(hub, client, repo_id, base, told):
    """What is withheld loads like any other, files, base weights and order checked."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    loaded = client("load", OWNER, base=base, repo_id=repo_id, merge=True)
    assert loaded == client("load", base=base, repo_id=told, merge=True)


def test_pushed_again(hub, client, repo_id, base, told):
    """It stays withheld without being asked for again, digests stay the same, and only what is new is sent."""
    first = client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    assert client("push", OWNER, folder=told, repo_id=repo_id) == first
    before = json.loads(hub.files(repo_id)["forgetting.json"])["tasks"]
    cases.make_forgetter(cases.load_base(base), told).forget(ForgetRequest([cases.NAMES[5]]))
    client("push", OWNER, folder=told, repo_id=repo_id)
    assert json.loads(hub.files(repo_id)["forgetting.json"])["tasks"][:2] == before
    assert not leaks(hub.files(repo_id))
    # To name them after all must be asked for.
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=False)
    assert leaks(hub.files(repo_id))


def test_what_was_named_cannot_be_withheld(hub, client, repo_id, told):
    """The history of a repository goes on naming the classes, so that withholding them there is refused."""
    client("push", OWNER, folder=told, repo_id=repo_id)
    head = hub.repo(repo_id).at("main").oid
    with pytest.raises(ClientError, match="names the classes, and its history would go on doing so"):
        client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    assert hub.repo(repo_id).at("main").oid == head


def test_another_key(hub, client, repo_id, told):
    """Digests that were published are not replaced by those of another key: nobody could prove anything any more."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    (told / "withheld.key").unlink()
    with pytest.raises(ClientError, match="was made with another key"):
        client("push", OWNER, folder=told, repo_id=repo_id)


def test_it_cannot_be_continued_by_others(hub, client, repo_id, base, told, tmp_path):
    """Who does not know what was forgotten would keep it; the folder of the run goes on."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    arguments = {"repo_id": repo_id, "base": base, "classes": [cases.NAMES[5]]}
    with pytest.raises(ClientError, match="withholds which classes were forgotten"):
        client("go_on", OWNER, folder=tmp_path / "mine", **arguments)
    assert not (tmp_path / "mine").exists()
    client("go_on", OWNER, folder=told, **arguments)
    assert ForgettingLedger.load(told).tasks[-1].class_names == [cases.NAMES[5]]


def entry(**more):
    values = {"request": {"classes": ["ann"], "note": "x"}, "classes": [1], "class_names": ["ann"]}
    times = {"started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:01:00Z"}
    return TaskEntry(**{"name": "task_001", **values, **times, **more})


def withheld(entry):
    base = {"name_or_path": "me/x", "fingerprint": "sha256:" + "0" * 64, "path": "/home/ann"}
    ledger = ForgettingLedger("nowhere", base, ["bob", "ann"], [entry], {"owner": "ann"})
    return withheld_ledger(ledger, KEY, "elsewhere")


def test_counts_do_not_show_through():
    """Sizes, steps, shots and fractions whose denominators are numbers of samples are gone or rounded."""
    scores = {"after": {"acc_forget": 45 / 46, "n_forget": 46, "h_mean": None, "note": "ann"}, "data": "test"}
    curve = {name: [0.978260, 0.5] for name in ("retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy")}
    curves = {"epoch": [1.0, 2.0], **curve, "active_groups": [3, 2]}
    settings = {"data": {"shots": 4, "replay_ratio": 0.5}, "training": {"seed": 1}, "notes": {"ann": 1}}
    (found,) = withheld(
        entry(scores=scores, curves=curves, settings=settings, sizes={"forget": 46, "steps": 9}, extra={"ann": 1})
    ).tasks
    assert found.scores == {"after": {"acc_forget": 0.98, "h_mean": None}, "data": "test"}
    assert found.sizes == found.extra == {}
    assert found.settings == {"training": {"seed": 1}, "data": {"replay_ratio": 0.5}}
    assert found.curves["forget_accuracy"] == [0.98, 0.5]
    assert found.curves["forget_loss"] == curve["forget_loss"]
    (found,) = withheld(entry(curves={**curves, "epoch": [1 / 23, 2 / 23]})).tasks  # 23 steps in an epoch
    assert found.curves is None


def test_unknown_keys_are_left_out():
    """What a later version may have put into a ledger is not published unseen."""
    ledger = withheld(entry())
    assert "ann" not in json.dumps(ledger.to_dict())
    assert ledger.base_model.keys() == {"name_or_path", "fingerprint"}


def test_what_says_that_it_is_withheld():
    """An entry that says so, and names its classes all the same, is not taken at its word."""
    (found,) = withheld(entry(request={"withheld": True, "digest": "x"}, sizes={"forget": 46})).tasks
    assert found.classes is found.class_names is None
    assert found.sizes == {}
    assert withheld(found).tasks == (found,)


def test_proof(told, tmp_path):
    """The owner can open one digest to somebody, who learns nothing about the others; nobody can open it wrongly."""
    published = stage_repository(told, tmp_path / "out", withhold_classes=True).ledger
    proof = request_proof(told, "task_002")
    assert proof["class_names"] == [cases.NAMES[0], cases.NAMES[4]]
    assert is_proof(published, proof)
    for change in ({"classes": [1]}, {"class_names": None}, {"key": "00" * 32}, {"key": "x"}, {"task": "task_001"}):
        assert not is_proof(published, {**proof, **change})
    assert not is_proof(published, {})
    assert proof["key"] != request_proof(told, "task_001")["key"] != withholding_key(told).hex()
    with pytest.raises(LedgerError, match="does not say which classes 'task_007' forgot"):
        request_proof(told, "task_007")
    with pytest.raises(LedgerError, match="does not say which classes 'task_001' forgot"):
        request_proof(tmp_path / "out", "task_001")


def test_the_same_classes_look_different():
    """Equal requests in two runs, or two tasks of one, have digests that cannot be told to be equal."""
    digests = {withheld_ledger(ledger, key, "x").tasks[0].request["digest"] for key in (KEY, bytes(32)) for ledger in [
        ForgettingLedger("x", {"fingerprint": "sha256:" + "0" * 64}, None, [entry(name=name)])
        for name in ("task_001", "task_002")
    ]}  # fmt: skip
    assert len(digests) == 4


def test_the_key(tmp_path):
    """Made once, for its owner alone to read; a damaged one is not replaced, and none is not made up."""
    with pytest.raises(LedgerError, match=r"withheld.key' does not exist"):
        withholding_key(tmp_path)
    key = withholding_key(tmp_path, create=True)
    assert len(key) == 32
    assert withholding_key(tmp_path, create=True) == withholding_key(tmp_path) == key
    path = tmp_path / "withheld.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["withheld.key"]
    for content in ("", "00", "x" * 64, "0" * 5000):
        path.write_text(content)
        with pytest.raises(LedgerError, match=r"withheld.key' is damaged"):
            withholding_key(tmp_path, create=True)


@pytest.mark.parametrize(("prefix", "target"), [("acc", 1 / 30), ("ap", 0.03)])
def test_verdicts_stay_and_figures_are_rounded(prefix, target):
    """Whether a task is forgotten may be known; exact shares, and keys of other versions, may not."""
    earlier = {"task_000": {"score": 2 / 46, "forgotten": False, "who": "ann"}}
    outcome = {"forgotten": False, "target": 1 / 30, "known_before": True, "earlier": earlier, "who": "ann"}
    scores = {"before": {f"{prefix}_forget": 1.0}, "after": {f"{prefix}_forget": 45 / 46}}
    (found,) = withheld(entry(scores=scores, outcome=outcome)).tasks
    assert found.outcome == {
        "forgotten": False,
        "target": target,  # a setting, or one by the number of all classes; of a detector a share of a score
        "known_before": True,
        "earlier": {"task_000": {"score": 0.04, "forgotten": False}},
    }
    assert withheld(entry()).tasks[0].outcome is None
