"""The plain `huggingface_hub` client against the loopback Hub: the ground on which the other tests stand."""

import hashlib

import pytest
from client_process import ClientError
from loopback import COLLEAGUE, OWNER, READER, STRANGER

WEIGHTS = bytes(range(256)) * 200


@pytest.fixture
def files(tmp_path):
    """A large file, a small one and a card, as a commit takes them."""
    contents = {"a/b.safetensors": WEIGHTS, "c.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in contents}


def sent_paths(hub):
    """What the commits so far consisted of."""
    lines = [line for request in hub.seen("POST", "/commit/") for line in request.json_lines()]
    return [(line["key"], line["value"]["path"]) for line in lines if line["key"] != "header"]


@pytest.mark.parametrize("uses_lfs", [True, False])
def test_round_trip(hub, client, repo_id, files, uses_lfs):
    """What is committed is downloaded byte for byte, through LFS or "regular", and is not uploaded twice."""
    hub.storage.uses_lfs = uses_lfs
    client("api", OWNER, method="create_repo", repo_id=repo_id, private=True)
    url = client("commit", OWNER, repo_id=repo_id, files=files)
    assert len(hub.seen("PUT", "/storage/")) == uses_lfs
    found = client("snapshot", OWNER, repo_id=repo_id)
    assert found["a/b.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert found.keys() == {*files, ".gitattributes"}
    assert client("commit", OWNER, repo_id=repo_id, files=files) == url
    assert len(hub.seen("POST", "/commit/")) == 1


def test_xet(hub, client, xet_client, repo_id, files):
    """With `hf_xet` large files go to the Xet store and come from there; who does without reads them all the same."""
    pytest.importorskip("hf_xet")
    hub.create(repo_id)
    xet_client("commit", OWNER, repo_id=repo_id, files=files)
    assert hub.repo(repo_id).at("main").files["a/b.safetensors"].xet_hash
    found = xet_client("snapshot", repo_id=repo_id)
    assert hub.seen("GET", "/xet-write-token/")
    assert hub.seen("GET", "/xet-read-token/")
    assert not hub.seen("PUT", "/storage/") + hub.seen("GET", "/storage/")
    assert found["a/b.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert client("snapshot", repo_id=repo_id) == found


def test_xet_is_not_installed(hub, new_client, repo_id, files):
    """Without `hf_xet` all goes through LFS, unasked."""
    hub.create(repo_id)
    without = new_client(refuse="hf_xet", HF_HUB_DISABLE_XET=None)
    assert not without("imported", package="hf_xet")
    without("commit", OWNER, repo_id=repo_id, files=files)
    assert len(hub.seen("PUT", "/storage/")) == 1
    assert without("download", repo_id=repo_id, path="a/b.safetensors") == WEIGHTS.decode("latin-1")


def test_tokens(hub, client, repo_id, files):
    """What is private does not exist for others; who may only read cannot write; nonsense is told from nothing."""
    hub.create(repo_id, {"c.json": b"{}"}, private=True)
    arguments = {"method": "model_info", "repo_id": repo_id}
    assert repo_id in client("api", READER, **arguments)
    for token, status in ((None, 401), (STRANGER, 404)):
        with pytest.raises(ClientError) as caught:
            client("api", token, **arguments)
        assert (caught.value.kinds[0], caught.value.status) == ("RepositoryNotFoundError", status)
    with pytest.raises(ClientError) as caught:
        client("api", "hf_nonsense", **arguments)
    assert (caught.value.kinds[0], caught.value.status) == ("HfHubHTTPError", 401)
    with pytest.raises(ClientError) as caught:
        client("commit", READER, repo_id=repo_id, files=files)
    assert caught.value.status == 403
    with pytest.raises(ClientError) as caught:
        client("api", COLLEAGUE, method="create_repo", repo_id=f"{repo_id}-2")
    assert caught.value.status == 403
    assert "authorization" not in {key for r in hub.seen("GET", "/storage/") for key in r.headers}


def test_revisions(hub, client, repo_id, files):
    """Commits and branches stay readable; an unknown revision, a race and a missing file are refused as such."""
    hub.create(repo_id)
    first = client("commit", OWNER, repo_id=repo_id, files=files)[-40:]
    client("api", OWNER, method="create_branch", repo_id=repo_id, branch="dev/x", revision=first)
    client(
        "commit", OWNER, repo_id=repo_id, files={"new.json": files["c.json"]}, revision="dev/x", parent_commit=first
    )
    client("commit", OWNER, repo_id=repo_id, files={}, delete=["c.json"])
    assert client("download", repo_id=repo_id, path="new.json", revision="dev/x") == "{}"
    assert "new.json" not in client("api", method="list_repo_tree", repo_id=repo_id, recursive=True)
    assert client("download", repo_id=repo_id, path="c.json", revision=first) == "{}"
    with pytest.raises(ClientError) as caught:
        client("commit", OWNER, repo_id=repo_id, files={"d.json": files["c.json"]}, parent_commit=first)
    assert caught.value.status == 412
    for path, revision, kind in (("c.json", "no", "RevisionNotFoundError"), ("c.json", "main", "EntryNotFoundError")):
        with pytest.raises(ClientError) as caught:
            client("download", repo_id=repo_id, path=path, revision=revision)
        assert kind in caught.value.kinds


def test_faults(hub, client, repo_id, files):
    """Calls that fail are repeated by the client, a download that is cut goes on where it was."""
    hub.create(repo_id)
    hub.fault("POST", "/preupload/", times=2, status=429, headers={"Retry-After": "3"})
    hub.fault("PUT", "/storage/", read_at_most=1000)
    client("commit", OWNER, repo_id=repo_id, files=files)
    assert client.waits == [4, 4, 1]
    large = bytes(11 * 2**20)  # the client keeps what it got in pieces of 10 MiB
    hub.put(repo_id, {"large.bin": large})
    hub.fault("GET", "/storage/", send_at_most=len(large) - 1)
    client("snapshot", repo_id=repo_id, allow_patterns="large.bin")
    assert [r.headers.get("range") for r in hub.seen("GET", "/storage/")] == [None, f"bytes={10 * 2**20}-"]


def test_bad_card(hub, client, repo_id, tmp_path):
    """Metadata that the real Hub refuses is refused here, so that the cards of the other tests are checked."""
    hub.create(repo_id)
    (tmp_path / "card.md").write_text("---\nbase_model: /home/me/model\n---\n")
    with pytest.raises(ClientError) as caught:
        client("commit", OWNER, repo_id=repo_id, files={"README.md": str(tmp_path / "card.md")})
    assert "ValueError" in caught.value.kinds
    assert "base_model" in caught.value.message
    assert not hub.seen("POST", "/commit/")
