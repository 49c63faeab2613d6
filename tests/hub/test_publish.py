"""Publishing goes through the real Hub client over HTTP, to a server in this process."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gs_lora_peft import ForgettingLedger, LedgerError, push_to_hub
from gs_lora_peft.sequence import TaskEntry, model_identity
from gs_lora_peft.storage import sha256_of

TOKEN = "hf_loopback"


class LoopbackHub(BaseHTTPRequestHandler):
    """The wire calls of a commit: create, preupload (every file "regular"), commit. Anything else is 404."""

    commits: list[dict]
    created: list[dict]
    private = True

    def do_GET(self):
        if self.path == "/api/models/me/clinic":
            return self._answer(200, {"id": "me/clinic", "private": self.private})
        return self._answer(404, {"error": self.path})

    def do_POST(self):
        body = self._body().decode()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid token"})
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self._answer(200, {"url": f"{self.server.address}/me/clinic", "id": "me/clinic"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._answer(200, {"files": modes})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in lines[1:]}
            self.commits.append({"summary": lines[0]["value"]["summary"], "files": files})
            return self._answer(200, {"commitUrl": f"{self.server.address}/me/clinic/commit/1", "commitOid": "1" * 40})
        return self._answer(404, {"error": self.path})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: dict):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    """A running server; requests it saw are in `hub.RequestHandlerClass`."""
    handler = type("Handler", (LoopbackHub,), {"commits": [], "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_folder(tmp_path):
    """A folder with a ledger of one task, and files beside it that must never leave the machine."""
    import torch

    folder = tmp_path / "clinic"
    task = folder / "tasks/task_001"
    task.mkdir(parents=True)
    (task / "adapter_config.json").write_text("{}")
    (task / "adapter_model.safetensors").write_bytes(b"weights")
    (task / "optimizer.pt").write_bytes(b"pickle")
    (folder / "notes.txt").write_text("person_07 asked for this")
    ledger = ForgettingLedger.create(folder, base_model=model_identity(torch.nn.Linear(2, 2)))
    names = ["tasks/task_001/adapter_config.json", "tasks/task_001/adapter_model.safetensors"]
    ledger.append(
        TaskEntry(
            name="task_001",
            request={"classes": [7]},
            classes=[7],
            started_at="2026-01-01T00:00:00+00:00",
            finished_at="2026-01-01T00:01:00+00:00",
            files={name: sha256_of(folder / name) for name in names},
        )
    )
    ledger.save()
    return folder


def push(folder, hub, token=TOKEN, private="True") -> subprocess.CompletedProcess:
    """In a process of its own: the client reads its address when it is imported."""
    code = (
        "import sys; from gs_lora_peft import push_to_hub; "
        "print(push_to_hub(sys.argv[1], 'clinic', token=sys.argv[2], private=sys.argv[3] == 'True'))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), token, private],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_one_private_commit_of_what_the_ledger_lists(run_folder, hub):
    """One commit with the ledger and its files, byte for byte; nothing else leaves; a new repository is private."""
    result = push(run_folder, hub)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("/commit/1")
    (commit,) = hub.RequestHandlerClass.commits
    assert sorted(commit["files"]) == [
        "forgetting.json",
        "tasks/task_001/adapter_config.json",
        "tasks/task_001/adapter_model.safetensors",
    ]
    assert all(content == (run_folder / name).read_bytes() for name, content in commit["files"].items())
    assert hub.RequestHandlerClass.created[0].get("private") is True or (
        hub.RequestHandlerClass.created[0].get("visibility") == "private"
    )


def test_an_existing_public_repository_is_refused(run_folder, hub):
    """The names of forgotten classes do not become public unless that was asked for."""
    hub.RequestHandlerClass.private = False
    result = push(run_folder, hub)
    assert "exists and is public" in result.stderr
    assert not hub.RequestHandlerClass.commits
    assert push(run_folder, hub, private="False").returncode == 0
    assert len(hub.RequestHandlerClass.commits) == 1


def test_a_wrong_token_sends_nothing(run_folder, hub):
    """The Hub's refusal reaches the caller."""
    result = push(run_folder, hub, token="hf_wrong")
    assert result.returncode != 0
    assert "401" in result.stderr
    assert not hub.RequestHandlerClass.commits


def test_a_changed_file_is_not_published(run_folder):
    """Hashes are checked before the first request."""
    (run_folder / "tasks/task_001/adapter_model.safetensors").write_bytes(b"other!!")
    with pytest.raises(LedgerError, match="adapter_model"):
        push_to_hub(run_folder, "clinic")
