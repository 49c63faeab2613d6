"""What can go wrong between this package and the Hub, and what a user can put there on purpose."""

import json
import os
import struct

import hub_cases as cases
import pytest
from client_process import ClientError
from hub_refusals import ledger_refused
from loopback import OWNER

from gs_lora_peft.ledger.schema import ledger_bytes, with_digest

WEIGHTS = "tasks/task_001/adapter_model.safetensors"
CONFIG = "tasks/task_001/adapter_config.json"
# The calls of a first push, in order.
CALLS = [
    ("POST", "/api/repos/create"),
    ("GET", "/api/models/"),
    ("GET", "/tree/"),
    ("POST", "/api/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/storage/"),
    ("POST", "/objects/verify"),
    ("POST", "/commit/"),
]


@pytest.fixture(scope="module")
def contents(running_hub, client, first_task):
    """What is published of a run with one task."""
    client("push", OWNER, folder=first_task[0], repo_id="me/clean", private=False)
    return running_hub.files("me/clean")


@pytest.fixture
def published(hub, repo_id, contents):
    """The id of a public repository of its own for each test, with a run of one task."""
    hub.create(repo_id, contents)
    return repo_id


def commits(hub, repo_id):
    return len(hub.repo(repo_id).history("main")) - 1 if hub.has(repo_id) else 0


# The way there


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 429, "headers": {"Retry-After": "3"}}, {"read_at_most": 10}],
    ids=["500", "429", "dropped"],
)
def test_every_call_is_repeated(hub, client, repo_id, short_run, fault):
    """Each call of a push fails once: busy, too often, or the connection breaks. The push goes through, once."""
    for method, pattern in CALLS:
        hub.fault(method, pattern, **fault)
    url = client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert commits(hub, repo_id) == 1
    assert url.endswith(hub.repo(repo_id).at("main").oid)
    assert len(client.waits) == len(CALLS)
    if fault.get("status") == 429:
        assert min(client.waits) >= 3


@pytest.mark.parametrize(("method", "pattern"), [("PUT", "/storage/"), ("POST", "/commit/")])
def test_the_connection_keeps_breaking(hub, client, repo_id, short_run, method, pattern):
    """A push that fails half-way leaves the remote as it was, and can be repeated."""
    hub.create(repo_id, {"README.md": b"---\nlicense: mit\n---\n"}, private=True)
    before = hub.repo(repo_id).at("main")
    hub.fault(method, pattern, times=100, read_at_most=500)
    with pytest.raises(ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert caught.value.kinds[:2] == ["HubUnreachableError", "ConnectionError"]
    assert caught.value.repo_id == repo_id
    assert hub.repo(repo_id).at("main") == before
    assert sum(client.waits) < 240
    hub.reset()
    client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert commits(hub, repo_id) == 2
    assert "forgetting.json" in hub.files(repo_id)


def test_the_answer_is_lost(hub, client, repo_id, short_run):
    """The commit is made, and the connection breaks before that is said: found out, and not made twice."""
    hub.fault("POST", "/commit/", lose_answer=True)
    url = client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert url.endswith(hub.repo(repo_id).at("main").oid)
    assert commits(hub, repo_id) == 1
    # A commit that takes something away is no empty one when it is tried again: the Hub refuses it.
    hub.put(repo_id, {"figures/old.png": b"old"})
    hub.fault("POST", "/commit/", lose_answer=True)
    url = client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert url.endswith(hub.repo(repo_id).at("main").oid)
    assert commits(hub, repo_id) == 3
    assert "figures/old.png" not in hub.files(repo_id)


def test_the_hub_stays_busy(hub, client, repo_id, short_run):
    """A Hub that is down for long ends the push, after about a minute, with what it said."""
    hub.fault("POST", "/commit/", times=100, status=503)
    with pytest.raises(ClientError) as caught:
        client("push", OWNER, folder=short_run, repo_id=repo_id)
    assert caught.value.kinds[:2] == ["HubUnreachableError", "ConnectionError"]
    assert (caught.value.repo_id, caught.value.status) == (repo_id, 503)
    assert commits(hub, repo_id) == 0


# The way back


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"send_at_most": 100}], ids=["500", "429", "cut"])
def test_downloads_are_repeated(hub, client, published, base, first_task, fault):
    """Each call of a download fails once: the model is loaded all the same."""
    for pattern in ("/resolve/.*forgetting", "/revision/", "/tree/", "/resolve/.*config", "/storage/"):
        for method in ("HEAD", "GET"):
            hub.fault(method, pattern, **fault)
    assert client("load", base=base, repo_id=published) == first_task[1]
    assert client.waits


@pytest.mark.parametrize("length", [0, 1], ids=["same-length", "longer"])
@pytest.mark.parametrize("path", [WEIGHTS, CONFIG, "forgetting.json"])
def test_tampered(hub, client, published, base, first_task, tmp_path, path, length):
    """A file that is not the one that was published is refused by name; nothing of it stays, the next try is clean."""
    content = hub.files(published)[path]
    hub.tamper(path, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] + b" " * length)
    target = tmp_path / "target"
    for call in (
        lambda: client("load", base=base, repo_id=published),
        lambda: client("fetch", repo_id=published, local_dir=target),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        # The client itself notices a file that is too long.
        assert path.rpartition("/")[2] in caught.value.message or "OSError" in caught.value.kinds
    assert not target.exists()
    hub.reset()
    assert client("load", base=base, repo_id=published) == first_task[1]


@pytest.mark.slow
def test_offline(hub, client, new_client, published, base, first_task):
    """With a warm cache no Hub is needed: told to be offline, or with nobody at the address."""
    client("load", base=base, repo_id=published)
    hub.reset()
    home = client.environment["HF_HOME"]
    offline = new_client(home, HF_HUB_OFFLINE="1")
    assert offline("load", base=base, repo_id=published) == first_task[1]
    with pytest.raises(ClientError) as caught:
        offline("load", base=base, repo_id="me/never-seen")
    assert "ConnectionError" in caught.value.kinds
    assert "me/never-seen" in caught.value.message
    with pytest.raises(ClientError) as caught:
        offline("push", OWNER, folder=first_task[0], repo_id=published)
    assert "ConnectionError" in caught.value.kinds
    assert not hub.seen("GET") + hub.seen("HEAD") + hub.seen("POST")
    away = new_client(home, HF_ENDPOINT="http://127.0.0.1:9")
    assert away("load", base=base, repo_id=published) == first_task[1]


@pytest.mark.parametrize("pattern", ["/resolve/.*forgetting", "/storage/"])
def test_downloads_keep_breaking(hub, client, published, base, tmp_path, pattern):
    """A Hub that is away for long while a run is fetched: one kind of error, and nothing in the folder."""
    hub.fault("GET", pattern, times=100, send_at_most=1)
    with pytest.raises(ClientError) as caught:
        client("fetch", repo_id=published, local_dir=tmp_path / "target")
    assert "ConnectionError" in caught.value.kinds
    assert not (tmp_path / "target").exists()


# What a user may have put there


def edited(hub, repo_id, change):
    """The published ledger with a change and a genuine digest, as a user would make it who means harm."""
    data = json.loads(hub.files(repo_id)["forgetting.json"])
    data.pop("digest"), data.pop("schema_version")
    change(data)
    return ledger_bytes(with_digest(data))


def put_files(hub, repo_id, contents):
    """Replaces files of the first task and lets the ledger vouch for them."""
    import hashlib

    def change(data):
        for path, content in contents.items():
            data["tasks"][0]["files"][path] = hashlib.sha256(content).hexdigest()

    hub.put(repo_id, {**contents, "forgetting.json": edited(hub, repo_id, change)})


def leaves_nothing(client, base, repo_id, target, *named) -> bool:
    """Whether nothing is left anywhere around `target` by loading and fetching, which are refused."""
    around = sorted(target.parent.iterdir())
    for call in (
        lambda: client("load", base=base, repo_id=repo_id),
        lambda: client("fetch", repo_id=repo_id, local_dir=target),
    ):
        with ledger_refused(*named):
            call()
    return sorted(target.parent.iterdir()) == around


@pytest.mark.parametrize(
    "path",
    [
        "../../outside.json",
        "tasks/task_001/../../../../outside.json",
        "/tmp/outside.json",
        "C:/outside.json",
        "tasks\\outside.json",
        "tasks/task_002/adapter_config.json",
        "tasks/task_001/code.py",
        "forgetting.json",
    ],
)
def test_paths_that_lead_out(hub, client, published, base, tmp_path, path):
    """A ledger that lists a file outside of its task's folder is refused, and the file is not even asked for."""
    hub.put(
        published,
        {"forgetting.json": edited(hub, published, lambda d: d["tasks"][0]["files"].update({path: "0" * 64}))},
    )
    assert leaves_nothing(client, base, published, tmp_path / "target", "task_001")
    assert not [r for r in hub.seen("GET", "/resolve/") if "forgetting.json" not in r.path]


def test_links(hub, client, published, tmp_path):
    """A target whose parts are links to elsewhere is refused; nothing is written through them."""
    client("fetch", repo_id=published, local_dir=tmp_path / "target")
    outside = tmp_path / "outside"
    os.rename(tmp_path / "target/tasks", outside)
    before = cases.read(outside)
    (outside / "task_001/adapter_config.json").unlink()
    os.symlink(outside, tmp_path / "target/tasks")
    with pytest.raises(ClientError) as caught:
        client("fetch", repo_id=published, local_dir=tmp_path / "target")
    assert "ValueError" in caught.value.kinds
    assert str(tmp_path / "target" / "tasks") in caught.value.message
    assert before.keys() - cases.read(outside).keys() == {"task_001/adapter_config.json"}


@pytest.mark.parametrize("header", [b"", b"{", b'{"a":1}', b"[" * 9000], ids=["none", "cut", "odd", "deep"])
@pytest.mark.parametrize("promised", [2**63 - 1, 10**6, 9])
def test_lying_headers(hub, client, published, base, tmp_path, header, promised):
    """Weights whose header lies about its size: refused, without reading or reserving what it promises."""
    put_files(hub, published, {WEIGHTS: struct.pack("<Q", promised) + header})
    with ledger_refused("task_001"):
        client("load", base=base, repo_id=published)


def test_huge_ledger(hub, client, published, base, tmp_path):
    """A ledger larger than any can be is not downloaded."""
    hub.put(published, {"forgetting.json": b" " * (65 * 2**20)})
    assert leaves_nothing(client, base, published, tmp_path / "target", published, "68157440")
    assert not hub.seen("GET", "/resolve/")
    hub.put(published, {"forgetting.json": b"{}"})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema_version": 1, "digest": "sha256:0"}', "'sha256:0'"),
        (b"\xff\xfe", "utf-8"),
        (b"[1]", "[1]"),
        (b'{"schema_version": 99}', "99"),
    ],
)
def test_bad_ledgers(hub, client, published, base, tmp_path, content, named):
    """A remote ledger that is none, was edited, or is of a newer schema: said, and nothing left behind."""
    hub.put(published, {"forgetting.json": content})
    assert leaves_nothing(client, base, published, tmp_path / "target", "forgetting.json", named)


def test_no_ledger(hub, client, published, base, tmp_path):
    """A repository of something else is told from a run."""
    hub.put(published, {"forgetting.json": None})
    assert leaves_nothing(client, base, published, tmp_path / "target", published, "forgetting.json")


def test_huge_configuration(hub, client, published, base, tmp_path):
    """A configuration larger than any can be is refused, although the ledger vouches for it."""
    put_files(hub, published, {CONFIG: b" " * (17 * 2**20)})
    assert leaves_nothing(client, base, published, tmp_path / "target", CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"r": 8},
        {"r": 10**9},
        {"target_modules": ["vit.layers.7.mlp.fc1"]},
        {"target_modules": ["vit.layernorm"]},
        {"peft_type": "PREFIX_TUNING"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
        {"base_model_name_or_path": "somebody/else"},
        {"target_modules": "(v+)+i.*x"},
        {"alpha_pattern": {"(v+)+x": 1}},
        {"lora_alpha": 0},
    ],
    ids=str,
)
def test_other_adapters(hub, client, published, base, change):
    """An adapter of another rank, architecture, kind or base, or one that would search or import, changes no model."""
    config = {**json.loads(hub.files(published)[CONFIG]), **change}
    put_files(hub, published, {CONFIG: json.dumps(config).encode()})
    with pytest.raises(ClientError) as caught:
        client("load", base=base, repo_id=published)
    assert "ValueError" in caught.value.kinds


@pytest.mark.parametrize("tasks", [2, -1, "task_001", ["task_009"], ["../task_001"], True])
def test_no_such_task(hub, client, published, base, tasks):
    """A task that does not exist is refused before anything but the ledger is fetched."""
    with ledger_refused("task_001"):
        client("load", base=base, repo_id=published, tasks=tasks)
    assert not [r for r in hub.seen("GET", "/resolve/") if "forgetting.json" not in r.path]


@pytest.mark.parametrize("name", ["a/b/c", "-a/b", "a--b/c", "a/b.git", "x" * 97, "../up", "no such folder"])
def test_malformed_names(hub, client, base, tmp_path, name):
    """A name that can be no repository is refused without asking the Hub."""
    for call in (lambda: client("load", base=base, repo_id=name), lambda: client("fetch", repo_id=name)):
        with pytest.raises(ClientError) as caught:
            call()
        assert "ValueError" in caught.value.kinds
    assert not hub.seen("GET") + hub.seen("HEAD")
