"""A folder becomes one commit on the Hub, completely or not at all, with permitted kinds of files only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from ...errors import InvalidInputError
from ...io import StrPath, sha256_of
from .calls import HubRefusalError, call_hub, checked_repo_id, status_of

PUBLISHED_SUFFIXES = (".safetensors", ".json", ".md", ".png")
# Of a data set: results of a benchmark.
DATASET_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tex", ".md", ".png")
# The Hub puts these into a repository that is made on its pages.
_OF_THE_HUB = (".gitattributes", "README.md")


@dataclass(frozen=True)
class RemoteHead:
    """The newest commit of a branch.

    Attributes:
        repo_id (`str`):
            Id of the repository, with its owner.
        revision (`str` or `None`):
            The branch; `None` is the main one.
        sha (`str` or `None`):
            The commit; `None` in a repository without any.
        files (`dict[str, RepoFile]`):
            Its files by path.
        makes_branch (`bool`):
            Whether the branch does not exist yet. Commit and files are then those of the main branch, from which
            [`commit_folder`] makes it.
        repo_type (`str` or `None`):
            `"dataset"`; `None` is a model.
    """

    repo_id: str
    revision: str | None
    sha: str | None
    files: dict[str, RepoFile]
    makes_branch: bool = False
    repo_type: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether the commit holds no model."""
        return all(path in _OF_THE_HUB for path in self.files)

    def holds(self, folder: StrPath, removed: Iterable[str] = ()) -> bool:
        """Returns whether the commit has all files of `folder`, byte for byte, and none of `removed`."""
        return not any(path in self.files for path in removed) and all(
            _is_same(Path(folder, name), self.files.get(name)) for name in publishable_files(folder, self.suffixes)
        )

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Kinds of files that may be published in the repository."""
        return DATASET_SUFFIXES if self.repo_type == "dataset" else PUBLISHED_SUFFIXES


def open_repository(
    api: HfApi, repo_id: str, *, revision: str | None = None, private: bool = True, repo_type: str | None = None
) -> RemoteHead:
    """Makes a repository if it does not exist, and reads its newest commit.

    Args:
        api (`HfApi`):
            The client, with a token.
        repo_id (`str`):
            `"name"` or `"organisation/name"`.
        revision (`str`, *optional*):
            A branch; [`commit_folder`] makes a missing one from the main branch.
        private (`bool`, *optional*, defaults to `True`):
            Whether a new repository is private, and an existing one must be.
        repo_type (`str`, *optional*):
            `"dataset"` for a data set; by default a model.

    Returns:
        [`RemoteHead`]: The newest commit.

    Raises:
        InvalidInputError: If the name is malformed, or the repository is public and `private` is `True`. Nothing is
            changed then.
        HubRefusalError: If the token does not allow it. Nothing is changed then.
    """
    checked_repo_id(repo_id)
    if revision == "":  # the Hub would return the list of all revisions
        raise InvalidInputError("revision", "", "the name of a branch, or None for the main one", "Name it.")
    kind: dict[str, Any] = {"repo_type": repo_type} if repo_type else {}
    full_id = call_hub(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **kind), repo_id).repo_id
    info = call_hub(lambda: api.repo_info(full_id, **kind), full_id)
    if private and not info.private:
        raise InvalidInputError(
            "repo_id",
            full_id,
            "a private repository; this one is public",
            "Make it private, choose another one, or pass private=False if everyone may read what is published.",
        )

    def branch() -> str | None:
        with suppress(RevisionNotFoundError):
            return api.repo_info(full_id, revision=revision, **kind).sha
        return None

    sha = None if revision is None else call_hub(branch, full_id)
    head = _read_head(api, full_id, revision, sha or info.sha, repo_type)
    return replace(head, makes_branch=revision is not None and sha is None)


def was_always_new(api: HfApi, head: RemoteHead) -> bool:
    """Returns whether no commit of a branch or tag holds a model; deleted files can be fetched from the history."""
    return head.is_new and all(_read_head(api, head.repo_id, None, sha).is_new for sha in _all_commits(api, head))


def versions_of(api: HfApi, head: RemoteHead, path: str) -> list[str]:
    """Finds the versions of a file in all branches and tags.

    Args:
        api (`HfApi`):
            The client.
        head ([`RemoteHead`]):
            The repository.
        path (`str`):
            The file.

    Returns:
        `list[str]`: One commit for each distinct content of the file, newest first.
    """
    found: dict[str, str] = {}
    for sha in _all_commits(api, head):
        for item in call_hub(lambda sha=sha: api.get_paths_info(head.repo_id, [path], revision=sha), head.repo_id):  # type: ignore[misc]
            if isinstance(item, RepoFile):
                found.setdefault(item.blob_id, sha)
    return list(found.values())


def _all_commits(api: HfApi, head: RemoteHead) -> list[str]:
    """Returns every commit of a branch or a tag, those of the branch of `head` first."""
    if head.sha is None:
        return []
    refs = call_hub(lambda: api.list_repo_refs(head.repo_id), head.repo_id)
    found: dict[str, None] = {}
    for sha in (head.sha, *(ref.target_commit for ref in (*refs.branches, *refs.tags))):
        if sha not in found:
            commits = call_hub(lambda sha=sha: api.list_repo_commits(head.repo_id, revision=sha), head.repo_id)  # type: ignore[misc]
            found |= dict.fromkeys(commit.commit_id for commit in commits)
    return list(found)


def commit_folder(api: HfApi, head: RemoteHead, folder: StrPath, message: str, *, removed: Iterable[str] = ()) -> str:
    """Sends all files of a folder in one commit on top of `head`. Unchanged files are not sent again.

    Args:
        api (`HfApi`):
            The client, with a token.
        head ([`RemoteHead`]):
            The commit on which the new one is made.
        folder (`str` or `os.PathLike`):
            The folder; its files get the same names in the repository.
        message (`str`):
            The first line of the commit.
        removed (`Iterable[str]`, *optional*):
            Files of `head` that the commit deletes.

    Returns:
        `str`: Address of the commit.

    Raises:
        InvalidInputError: If the folder holds files that must not leave the machine, or the repository has a
            `.gitignore`. The repository is unchanged then.
        HubRefusalError: If the token does not allow it, or another commit came in the meantime. The repository is
            unchanged then.
        HubUnreachableError: If the Hub is away, or busy for too long.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses for another reason.
    """
    names = publishable_files(folder, head.suffixes)
    if ".gitignore" in head.files:
        raise InvalidInputError(
            "repo_id",
            head.repo_id,
            "a repository without a '.gitignore', which makes the Hub leave out files silently",
            "Delete that file there, or choose another repository.",
        )
    removed = [path for path in removed if path in head.files]

    def commit() -> CommitInfo:
        # New objects for each attempt, because the client stores answers of the Hub in them.
        add = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder, name)) for name in names]
        delete = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in removed]
        return api.create_commit(
            head.repo_id,
            [*add, *delete],
            commit_message=message,
            revision=head.revision,
            parent_commit=head.sha,
            repo_type=head.repo_type,
        )

    if head.makes_branch:
        branch = str(head.revision)
        call_hub(
            lambda: api.create_branch(
                head.repo_id, branch=branch, revision=head.sha, exist_ok=True, repo_type=head.repo_type
            ),
            head.repo_id,
        )
    try:
        return str(call_hub(commit, head.repo_id).commit_url)
    except HTTPError as error:
        if status_of(error) not in (404, 412):
            raise
        # If the commit was made and only its answer was lost, `head` is not the newest commit, and the files to
        # delete are gone.
        sha = call_hub(
            lambda: api.repo_info(head.repo_id, revision=head.revision, repo_type=head.repo_type), head.repo_id
        ).sha
        if _read_head(api, head.repo_id, head.revision, sha, head.repo_type).holds(folder, removed):
            place = f"datasets/{head.repo_id}" if head.repo_type == "dataset" else head.repo_id
            return f"{api.endpoint}/{place}/commit/{sha}"
        if sha == head.sha:
            raise
        raise HubRefusalError(
            "repo_id",
            head.repo_id,
            f"a repository that is still at commit {str(head.sha)[:8]}; another commit came in the meantime",
            "Nothing was sent. Check the new commit, and push again.",
            status_of(error),
        ) from error


def publishable_files(folder: StrPath, suffixes: tuple[str, ...] = PUBLISHED_SUFFIXES) -> list[str]:
    """Returns all files below a folder by their relative path, sorted.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        suffixes (`tuple[str, ...]`, *optional*):
            Kinds of files that may leave the machine; by default those of a model.

    Raises:
        InvalidInputError: If one of them is a link, or of a kind that must not leave the machine.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or name.startswith(".") or (name in files and path.suffix not in suffixes):
                raise InvalidInputError(
                    "file to publish",
                    relative,
                    f"a regular file that ends with {', '.join(suffixes)}",
                    f"Remove it from '{folder}'.",
                )
            if name in files:
                names.append(relative)
    return sorted(names)


def _read_head(
    api: HfApi, repo_id: str, revision: str | None, sha: str | None, repo_type: str | None = None
) -> RemoteHead:
    if sha is None:
        return RemoteHead(repo_id, revision, None, {}, repo_type=repo_type)
    tree = call_hub(
        lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=sha, repo_type=repo_type)), repo_id
    )
    files = {item.path: item for item in tree if isinstance(item, RepoFile)}
    return RemoteHead(repo_id, revision, sha, files, repo_type=repo_type)


def _is_same(path: Path, remote: RepoFile | None) -> bool:
    if remote is None:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == sha256_of(path))
    return bool(remote.blob_id == git_hash(path.read_bytes()))
