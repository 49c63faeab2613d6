"""Where the content of files is, and the server from which large ones are fetched by signed links."""

from __future__ import annotations

import hashlib
import secrets
import threading
from pathlib import Path

from .repository import GITATTRIBUTES, File, HubError, upload_mode
from .server import Answer, Request
from .xet import XetStore


class Storage:
    """Content by its SHA-256.

    Attributes:
        tampered (`dict[str, bytes]`): What is sent instead of the true content, by path in the repository.
        uses_lfs (`bool`): Whether files go through LFS at all; otherwise all of them are "regular".
    """

    def __init__(self, folder: Path):
        self.address = ""
        self.xet = XetStore(folder / "xet")
        initial = GITATTRIBUTES.encode()
        self.blobs = {File.regular(initial).sha256: initial}
        self.tampered: dict[str, bytes] = {}
        self.uses_lfs = True
        self._links: dict[str, tuple[str, File | None, str]] = {}
        self._uploaded: set[tuple[str, str]] = set()  # repository, SHA-256: other repositories' files do not count
        self._lock = threading.Lock()

    def goes_through_lfs(self, path: str, size: int, sample: bytes) -> bool:
        return self.uses_lfs and upload_mode(path, size, sample) == "lfs"

    def keep(self, path: str, content: bytes) -> File:
        """Stores the content of a file that did not come through LFS."""
        file = File.regular(content)
        self.blobs[file.sha256] = content
        if self.goes_through_lfs(path, len(content), content[:512]):
            return File.lfs(file.sha256, file.size)
        return file

    def in_lfs(self, repo_id: str, sha256: str) -> bool:
        return (repo_id, sha256) in self._uploaded

    def uploaded(self, repo_id: str, sha256: str, size: int) -> File | None:
        """A file that was uploaded to a repository through LFS, or through Xet, or `None`."""
        if self.in_lfs(repo_id, sha256):
            return File.lfs(sha256, size)
        xet_hash = self.xet.hash_of(sha256)
        return File.lfs(sha256, size, xet_hash) if xet_hash else None

    def content(self, file: File) -> bytes:
        with self._lock:
            if file.sha256 not in self.blobs and file.xet_hash:
                self.blobs[file.sha256] = self.xet.read(file.xet_hash, file.size)
            return self.blobs[file.sha256]

    def sent(self, path: str, file: File) -> bytes:
        """What a user who downloads a file gets."""
        return self.tampered[path] if path in self.tampered else self.content(file)

    def upload_link(self, repo_id: str, sha256: str) -> str:
        return self._link(sha256, None, repo_id)

    def download_link(self, file: File, path: str) -> str:
        return self._link(file.sha256, file, path)

    def _link(self, sha256: str, file: File | None, place: str) -> str:
        key = secrets.token_hex(8)
        self._links[key] = (sha256, file, place)
        return f"{self.address}/storage/{sha256}?key={key}"

    def call(self, request: Request) -> Answer:
        """Answers a request to the storage server."""
        sha256, file, place = self._links.get(request.query.get("key", ""), ("", None, ""))
        if sha256 != request.path.removeprefix("/storage/") or "authorization" in request.headers:
            raise HubError(403, "the storage knows signed links only, and no tokens")
        if file is not None and request.method == "GET":
            return Answer(self.sent(place, file), ranges=True)
        if file is None and request.method == "PUT":
            if hashlib.sha256(request.body).hexdigest() != sha256:
                raise HubError(400, "the content is not what was announced")
            self.blobs[sha256] = request.body
            self._uploaded.add((place, sha256))
            return Answer()
        raise HubError(403, f"the link is not for {request.method}")
