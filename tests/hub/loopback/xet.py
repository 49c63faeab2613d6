"""The Xet side of the loopback Hub: the real `hf_xet` client keeps its chunks in a folder instead of on a server."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Sizes and flags of a shard file: header, then one record a file, each made of blocks of the same size.
BLOCK = 48
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
READ = "import hf_xet, sys; group = hf_xet.XetSession().new_file_download_group(endpoint=sys.argv[1])\n" + (
    "with group: group.start_download_file(hf_xet.XetFileInfo(sys.argv[2], int(sys.argv[3])), sys.argv[4])"
)


class XetStore:
    """A content-addressed store in a folder (`local://`), which `hf_xet` fills and reads without a server.

    What is missing compared with the real service is its network protocol; chunking, deduplication, shards and the
    exchange of tokens are the real ones.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def token(self) -> dict[str, str | int]:
        """What the client is told about the store; it does not check the token of a folder."""
        return {"accessToken": "xet-loopback", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.folder}"}

    def hash_of(self, sha256: str) -> str | None:
        """The Xet hash of an uploaded file, or `None` if no such file was uploaded."""
        shards = self.folder.rglob("shards/*.mdb")
        found = (file_hash for path in shards for file_hash, sha in _files(path.read_bytes()) if sha == sha256)
        return next(found, None)

    def read(self, xet_hash: str, size: int) -> bytes:
        """The content of a file, read by a process of its own: the store is locked for as long as one has it open."""
        out = self.folder / f"read-{xet_hash}"
        arguments = [f"local://{self.folder}", xet_hash, str(size), str(out)]
        subprocess.run([sys.executable, "-c", READ, *arguments], check=True, capture_output=True, timeout=60)
        content = out.read_bytes()
        out.unlink()
        return content


def _files(shard: bytes) -> Iterator[tuple[str, str | None]]:
    """Xet hash and SHA-256 of every file in a shard."""
    position = BLOCK
    while True:
        raw_hash, (flags, entries) = shard[position : position + 32], struct.unpack_from("<II", shard, position + 32)
        if raw_hash == b"\xff" * 32:
            return
        position += BLOCK * (1 + entries * (2 if flags & WITH_VERIFICATION else 1))
        sha = None
        if flags & WITH_METADATA:
            sha = _hex(shard[position : position + 32])
            position += BLOCK
        yield _hex(raw_hash), sha


def _hex(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
