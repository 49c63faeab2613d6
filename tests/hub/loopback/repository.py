"""Repositories: files by content, commits with parents, branches and tags, and who may do what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

# What the Hub writes into a new model repository; these files go through LFS.
LFS_SUFFIXES = (".bin", ".pt", ".safetensors", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
MAX_REGULAR_BYTES = 10 * 2**20


class HubError(Exception):
    """An answer that is not 2xx: `code` goes into `X-Error-Code`, by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


@dataclass(frozen=True)
class User:
    """Who a token belongs to; `role` is `"write"` or `"read"`."""

    name: str
    organizations: tuple[str, ...] = ()
    role: str = "write"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations)


@dataclass(frozen=True)
class File:
    """A file of a commit: its content lies elsewhere, under its SHA-256."""

    sha256: str
    size: int
    git_oid: str
    is_lfs: bool = False
    xet_hash: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> File:
        return cls(hashlib.sha256(content).hexdigest(), len(content), _git_oid(content))

    @classmethod
    def lfs(cls, sha256: str, size: int, xet_hash: str | None = None) -> File:
        return cls(sha256, size, _git_oid(cls._pointer(sha256, size)), True, xet_hash)

    @staticmethod
    def _pointer(sha256: str, size: int) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()

    @property
    def oid(self) -> str:
        """What the client compares its own file with, to see whether it has changed."""
        return self.sha256 if self.is_lfs else self.git_oid

    def lfs_info(self, key: str) -> dict[str, Any]:
        """The `lfs` part of a listing; its hash is named `oid` in a tree and `sha256` among siblings."""
        if not self.is_lfs:
            return {}
        pointer_size = len(self._pointer(self.sha256, self.size))
        return {"lfs": {key: self.sha256, "size": self.size, "pointerSize": pointer_size}}


@dataclass(frozen=True)
class Commit:
    """One state of a repository, never changed."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    def below(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """The listing of a folder (`""` is the root), as `/tree` answers it; EntryNotFound if there is none."""
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in self.files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f'{folder} does not exist on "{self.oid}"', "EntryNotFound")
        rows: dict[str, dict[str, Any]] = {}
        for path, file in sorted(inside.items()):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                parent = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    rows.setdefault(parent, {"type": "directory", "oid": _git_oid(parent.encode()), "size": 0})
            if recursive or len(parts) == 1:
                rows[path] = describe(file)
        return [{"path": path, **row} for path, row in rows.items()]


def describe(file: File) -> dict[str, Any]:
    """A file in a listing, without its path."""
    xet = {"xetHash": file.xet_hash} if file.xet_hash else {}
    return {"type": "file", "oid": file.git_oid, "size": file.size, **file.lfs_info("oid"), **xet}


class Repository:
    """A model repository: like git, a branch is a name for a commit, and a commit never changes."""

    def __init__(self, repo_id: str, private: bool):
        self.repo_id, self.private = repo_id, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commit("main", "initial commit", {".gitattributes": File.regular(GITATTRIBUTES.encode())})

    @property
    def namespace(self) -> str:
        return self.repo_id.removeprefix("datasets/").split("/")[0]

    def check_access(self, user: User | None, write: bool) -> None:
        """Refuses who may not read or write, as the Hub does: what is private does not exist for strangers."""
        member = user is not None and self.namespace in user.namespaces
        if self.private and not member:
            raise no_such_repository(user)
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and not (member and user is not None and user.role == "write"):
            raise HubError(403, f"You don't have the rights to write to {self.repo_id}")

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a hash; RevisionNotFound if there is none."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> tuple[Commit, File]:
        """A file and the commit it was found in; EntryNotFound if there is none."""
        commit = self.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        return commit, commit.files[path]

    def history(self, revision: str) -> list[Commit]:
        """The commit of a revision and all before it, the newest first."""
        commits, oid = [], self.at(revision).oid
        while oid is not None:
            commits.append(self.commits[oid])
            oid = self.commits[oid].parent
        return commits

    def branch(self, name: str, revision: str | None) -> None:
        """Makes a branch; 409 if it is there."""
        if name in self.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{name}")
        self.branches[name] = self.at(revision or "main").oid

    def commit(self, branch: str, title: str, files: Mapping[str, File], parent: str | None = None) -> Commit:
        """Moves a branch on to a new state; 412 if `parent` is given and is no longer its head."""
        head = self.branches.get(branch)
        if head is None and self.commits:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent is not None and parent != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        content = f"{len(self.commits)} {head} {title} {sorted((p, f.sha256) for p, f in files.items())}"
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), head, title, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


def apply_operations(
    files: Mapping[str, File], operations: Iterable[Mapping[str, Any]], added: Mapping[str, File]
) -> dict[str, File]:
    """The state after the lines of a commit: `added` has the files of its `file` and `lfsFile` lines."""
    after = dict(files)
    for operation in operations:
        path = operation["value"]["path"]
        if operation["key"] in ("file", "lfsFile"):
            after[path] = added[path]
        elif operation["key"] in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [name for name in after if name == path or name.startswith(prefix)]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del after[name]
        else:
            raise HubError(400, f"Unknown operation {operation['key']}")
    return after


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """Whether a file goes through LFS: by `.gitattributes`, by its size, or because it is binary."""
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > MAX_REGULAR_BYTES or b"\0" in sample else "regular"


def no_such_repository(user: User | None) -> HubError:
    """What the Hub says of a repository that is not there, or not there for this user."""
    if user is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
