"""What was forgotten can be kept back: nothing that leaves names it, and its owner can prove it later."""

import dataclasses
import itertools
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import hub_cases as cases
import pytest
from client_process import ClientError
from errors import refused
from hub_refusals import ledger_refused
from huggingface_hub import ModelCard
from loopback import OWNER

from gs_lora_peft import ForgetRequest, ForgettingLedger
from gs_lora_peft.hub import is_proof, request_proof, stage_repository
from gs_lora_peft.hub.card import build_card
from gs_lora_peft.hub.card_metadata import revoked_since, scored_last
from gs_lora_peft.hub.withhold import withheld_ledger, withholding_key, without_counts
from gs_lora_peft.ledger import TaskEntry
from gs_lora_peft.ledger.errors import InvalidLedgerError

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
    counting = {"forget", "retain", "steps", "shots", "train_data", "evaluation_data", "augment"}
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
    with refused("repo_id", repo_id, ClientError) as caught:
        client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    assert head[:8] in caught.value.fix
    assert hub.repo(repo_id).at("main").oid == head


@pytest.mark.parametrize("kept_by", ["main", "tag", "branch"])
def test_what_was_named_once_cannot_be_withheld(hub, client, repo_id, told, kept_by):
    """Deleting the ledger takes nothing back: an old commit, a tag or another branch goes on naming the classes."""
    client("push", OWNER, folder=told, repo_id=repo_id, revision="study" if kept_by == "branch" else None)
    if kept_by == "tag":
        client("api", OWNER, method="create_tag", repo_id=repo_id, tag="v1")
        repository = hub.repo(repo_id)
        repository.branches["main"] = repository.history("main")[-1].oid  # squashed: the tag alone still leads there
    if kept_by == "main":
        files = [path for path in hub.files(repo_id) if path != ".gitattributes"]
        client("commit", OWNER, repo_id=repo_id, files={}, delete=files)
    head = hub.repo(repo_id).at("main").oid
    with refused("repo_id", repo_id, ClientError):
        client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    assert hub.repo(repo_id).at("main").oid == head
    assert "forgetting.json" not in hub.files(repo_id)


def test_withheld_stays_withheld_elsewhere(hub, client, repo_id, told, tmp_path):
    """A run that was withheld once is so in every new place, a folder included, unless names are asked for."""
    stage_repository(told, tmp_path / "once", withhold_classes=True)
    client("push", OWNER, folder=told, repo_id=repo_id)
    assert not leaks(hub.files(repo_id))
    stage_repository(told, tmp_path / "again")
    assert not leaks(cases.read(tmp_path / "again"))
    stage_repository(told, tmp_path / "named", withhold_classes=False)
    assert leaks(cases.read(tmp_path / "named"))


def test_while_a_run_goes_on(told, tmp_path):
    """Publishing needs no lock, the first time with withheld classes neither; two at once have the same key."""
    with ForgettingLedger.load(told).lock():
        first = stage_repository(told, tmp_path / "one", withhold_classes=True).ledger
    with ThreadPoolExecutor(4) as pool:
        (told / "withheld.key").unlink()
        keys = set(pool.map(lambda _: withholding_key(told, create=True), range(8)))
    assert len(keys) == 1
    assert first.tasks[0].request["digest"].startswith("hmac-sha256:")
    assert not list(told.glob(".staging-*"))


def moments(value):
    """All times in nested JSON."""
    if isinstance(value, dict):
        return [moment for item in value.values() for moment in moments(item)]
    if isinstance(value, list):
        return [moment for item in value for moment in moments(item)]
    return [value] if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value) else []


def shares(value):
    """All scores in nested JSON."""
    if isinstance(value, dict):
        own = [v for k, v in value.items() if re.match("acc_|ap_|h_mean|drop", k) and v is not None]
        return own + [share for item in value.values() for share in shares(item)]
    return [share for item in value for share in shares(item)] if isinstance(value, list) else []


def test_no_time_and_no_share_tells_a_size(told, tmp_path):
    """Days and whole per cent alone, in ledger, card and its head; the rest is as valid as any ledger."""
    staged = stage_repository(told, tmp_path / "out", withhold_classes=True)
    ledger = json.loads((staged.folder / "forgetting.json").read_text())
    assert moments(ledger)
    assert all(moment.endswith("T00:00:00Z") for moment in moments(ledger))
    assert shares(ledger)
    assert all(share == round(share, 2) for share in shares(ledger))
    card = (staged.folder / "README.md").read_text()
    assert not re.search(r" \d\d:\d\d|\dT\d\d", card)
    assert not re.search(r"\d\.[1-9] ", card.split("## How well it worked")[1].split("###")[0])
    values = [result.metric_value for result in ModelCard(card).data.eval_results or []]
    assert all(value == round(value, 2) for value in values)
    assert ForgettingLedger.load(staged.folder).tasks == staged.ledger.tasks


@pytest.mark.parametrize("count", [2, 4])
def test_days_do_not_change_what_the_scores_are_of(count):
    """What was revoked before which task, and last, is said of a withheld run as of one that names its classes."""
    hours = range(6)
    for revoked_at in itertools.permutations([None, *(f"2026-01-01T{hour:02d}:30:00Z" for hour in hours)], count):
        entries = [
            entry(
                name=f"task_{number:03d}",
                finished_at=f"2026-01-01T{number:02d}:00:00Z",
                **({"status": "revoked", "revocation": {"revoked_at": at}} if at else {}),
            )
            for number, at in enumerate(revoked_at, start=1)
            if not at or at > f"2026-01-01T{number:02d}"
        ]
        coarse = without_counts(entries)
        for exact, day in zip(entries, coarse, strict=True):
            assert revoked_since(exact, entries) == revoked_since(day, coarse)
        last, last_of_days = scored_last(entries), scored_last(coarse)
        assert (last and last.name) == (last_of_days and last_of_days.name)
        assert without_counts(coarse) == coarse


def test_a_card_of_the_full_ledger_can_be_withheld(told):
    """The card says no more of a full ledger than of one that is withheld."""
    ledger = ForgettingLedger.load(told)
    text = str(build_card(ledger, repo_id="me/x", withheld=True))
    assert not leaks({"README.md": text.encode()})
    assert not re.search(r" \d\d:\d\d|\dT\d\d", text)


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_who_may_read_what_names_people(told, tmp_path):
    """A ledger that names classes is for its owner alone; what its owner has opened to others stays so."""
    assert mode(told / "forgetting.json") == 0o600
    withheld_one = stage_repository(told, tmp_path / "withheld", withhold_classes=True).folder
    assert mode(withheld_one / "forgetting.json") & 0o600 == 0o600
    named = stage_repository(told, tmp_path / "named", withhold_classes=False).folder
    assert mode(named / "forgetting.json") == mode(named / "README.md") == 0o600
    (told / "forgetting.json").chmod(0o640)
    ledger = ForgettingLedger.load(told)
    with ledger.changes():
        ledger.revoke("task_002")
    assert mode(told / "forgetting.json") == 0o640


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_another_key(hub, client, repo_id, told):
    """Digests that were published are not replaced by those of another key: nobody could prove anything any more."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    published = json.loads(hub.files(repo_id)["forgetting.json"])["tasks"][0]["request"]["digest"]
    (told / "withheld.key").unlink()
    with refused("digest of task_001", kind=ClientError) as caught:
        client("push", OWNER, folder=told, repo_id=repo_id)
    assert published in caught.value.expected
    assert published != caught.value.value


def test_it_cannot_be_continued_by_others(hub, client, repo_id, base, told, tmp_path):
    """Who does not know what was forgotten would keep it; the folder of the run goes on."""
    client("push", OWNER, folder=told, repo_id=repo_id, withhold_classes=True)
    arguments = {"repo_id": repo_id, "base": base, "classes": [cases.NAMES[5]]}
    with ledger_refused(repo_id):
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
    settings = {
        "data": {"shots": 4, "replay_ratio": 0.5},
        "training": {"seed": 1, "max_steps": 9},
        "notes": {"ann": 1},
    }
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


def test_what_later_versions_add():
    """Of a field that is not known here, what is true, false or a share is kept, rounded; names and counts are not."""

    @dataclasses.dataclass(frozen=True)
    class LaterEntry(TaskEntry):
        findings: dict | None = None
        verdict: str | None = None

    values = {field.name: getattr(entry(), field.name) for field in dataclasses.fields(TaskEntry)}
    findings = {"forgotten": False, "accuracy": 45 / 98, "rows": 46, "n_rows": 0.5, "names": ["ann"], "why": "ann"}
    later = LaterEntry(**values, findings=findings, verdict="ann is still known")
    (found,) = without_counts([dataclasses.replace(later, scores={"forgotten": True, "rows": 46, "ann": "ann"})])
    assert (found.findings, found.verdict) == ({"forgotten": False, "accuracy": 0.46}, None)
    assert found.scores == {"forgotten": True}


def test_what_says_that_it_is_withheld():
    """An entry that says so, and names its classes all the same, is not taken at its word."""
    (found,) = withheld(entry(request={"withheld": True, "digest": "x"}, sizes={"forget": 46})).tasks
    assert found.classes is found.class_names is None
    assert found.sizes == {}
    assert withheld(found).tasks == (found,)


def test_proof(told, tmp_path):
    """The owner can open one digest to a user, who learns nothing about the others; nobody can open it wrongly."""
    published = stage_repository(told, tmp_path / "out", withhold_classes=True).ledger
    proof = request_proof(told, "task_002")
    assert proof["class_names"] == [cases.NAMES[0], cases.NAMES[4]]
    assert is_proof(published, proof)
    for change in ({"classes": [1]}, {"class_names": None}, {"key": "00" * 32}, {"key": "x"}, {"task": "task_001"}):
        assert not is_proof(published, {**proof, **change})
    assert not is_proof(published, {})
    assert proof["key"] != request_proof(told, "task_001")["key"] != withholding_key(told).hex()
    with refused("task", "task_007", InvalidLedgerError):
        request_proof(told, "task_007")
    with refused("task", "task_001", InvalidLedgerError):
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
    with refused(str(tmp_path / "withheld.key"), "missing", InvalidLedgerError):
        withholding_key(tmp_path)
    key = withholding_key(tmp_path, create=True)
    assert len(key) == 32
    assert withholding_key(tmp_path, create=True) == withholding_key(tmp_path) == key
    path = tmp_path / "withheld.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["withheld.key"]
    for content in ("", "00", "x" * 64, "0" * 5000):
        path.write_text(content)
        with refused(str(path), "damaged", InvalidLedgerError):
            withholding_key(tmp_path, create=True)
        assert path.read_text() == content


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
