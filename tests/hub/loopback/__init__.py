"""A Hub on this machine: the wire calls that `huggingface_hub` makes of models and data sets, tokens, and faults.

Every call was written after the client's own code. As on the real Hub, large and binary files go to a storage server
at another address, which knows no tokens but signed links; with `hf_xet` they go to a Xet store, which here is a
folder. The id of a data set begins with "datasets/". Left out: spaces, pull requests, gated repositories, uploads in
several parts, renamed repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .api import COLLEAGUE, OWNER, READER, STRANGER, Api
from .repository import Commit, File, Repository, apply_operations
from .server import Fault, Request, Server
from .storage import Storage

__all__ = ["COLLEAGUE", "OWNER", "READER", "STRANGER", "LoopbackHub"]


class LoopbackHub:
    """A running Hub, empty at first, and what tests do to it behind the client's back.

    The users `me` (token `OWNER`, and `READER` for reading only) and `colleague` (`COLLEAGUE`) are members of the
    organization `clinic`; `stranger` (`STRANGER`) is not.

    Args:
        folder (`Path`): Where the Xet store is made.
    """

    def __init__(self, folder: Path):
        self.storage = Storage(folder)
        self.api = Api(self.storage)
        self._servers = Server(self.api.call), Server(self.storage.call)
        self.api.address, self.storage.address = (server.address for server in self._servers)
        for server in self._servers:
            server.start()

    @property
    def address(self) -> str:
        """What `HF_ENDPOINT` is to be."""
        return self.api.address

    def stop(self) -> None:
        for server in self._servers:
            server.stop()

    def reset(self) -> None:
        """Nothing goes wrong any more, and nothing was seen. Repositories stay: every test has its own."""
        self.storage.tampered.clear()
        self.storage.uses_lfs = True
        for server in self._servers:
            for kept in (server.requests, server.faults, server.broken):
                kept.clear()

    @property
    def broken(self) -> list[str]:
        """Tracebacks of calls that this Hub itself failed at."""
        return [said for server in self._servers for said in server.broken]

    def fault(self, method: str, pattern: str, **what: Any) -> None:
        """Makes the next requests to the Hub or its storage (paths with `/storage/`) go wrong, see `Fault`."""
        for server in self._servers:
            server.faults.append(Fault(method, pattern, **what))

    def tamper(self, path: str, content: bytes) -> None:
        """From now on, clients that download this path get other content than was committed."""
        self.storage.tampered[path] = content

    def seen(self, method: str, pattern: str = "") -> list[Request]:
        """The requests so far with a method and a path in which a regular expression is found."""
        return [request for server in self._servers for request in server.seen(method, pattern)]

    def create(self, repo_id: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> Repository:
        """Makes a repository that holds some files."""
        self.api.repos[repo_id] = Repository(repo_id, private)
        if files:
            self.put(repo_id, files)
        return self.api.repos[repo_id]

    def put(self, repo_id: str, files: Mapping[str, bytes | None], branch: str = "main") -> Commit:
        """Makes a commit that adds, replaces or (`None`) deletes files."""
        added = {path: self.storage.keep(path, content) for path, content in files.items() if content is not None}
        lines = [{"key": "file" if path in added else "deletedFile", "value": {"path": path}} for path in files]
        repo = self.api.repos[repo_id]
        return repo.commit(branch, "behind the client's back", apply_operations(repo.at(branch).files, lines, added))

    def repo(self, repo_id: str) -> Repository:
        return self.api.repos[repo_id]

    def has(self, repo_id: str) -> bool:
        return repo_id in self.api.repos

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What is in a repository, but for the file that the Hub itself puts into each."""
        files: Mapping[str, File] = self.api.repos[repo_id].at(revision).files
        return {path: self.storage.content(file) for path, file in files.items() if path != ".gitattributes"}
