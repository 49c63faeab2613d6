"""Fetching a published run: the ledger first, then only the files that it lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import RemoteEntryNotFoundError

from ..errors import InvalidInputError
from ..io import StrPath, as_path, safe_join
from ..ledger import (
    LEDGER_NAME,
    MAX_CONFIG_BYTES,
    MAX_LEDGER_BYTES,
    ForgettingLedger,
    InvalidLedgerError,
    LedgerError,
    LedgerFileError,
    TaskEntry,
    WithheldClassesError,
    as_ledger_error,
    listed_files,
)
from .client.calls import HubRefusalError, checked_repo_id
from .client.commit import PUBLISHED_SUFFIXES
from .client.download import as_folder_or_repo, download_file, download_snapshot
from .install import audit_files, install_run, is_withheld, withheld_tasks


def fetch_run(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_dir: StrPath | None = None,
    tasks: int | Sequence[str] | None = None,
) -> Path:
    """Downloads a published run: its ledger, and the files of its tasks that the ledger lists. It fetches no others.

    Files in the Hugging Face cache are not downloaded again, and are enough when offline (`HF_HUB_OFFLINE=1`).

    Args:
        repo_id (`str`):
            `"organisation/name"`, as given to [`push_to_hub`].
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`; needed for private repositories.
        local_dir (`str` or `os.PathLike`, *optional*):
            Folder for the run, in which it can be continued; made if missing. A folder with the same run gets the
            files that it lacks; a run that is ahead of the published one stays as it is. Hashes are checked first, and
            after a failure the folder is as it was. By default the files stay in the Hugging Face cache.
        tasks (`int` or list of `str`, *optional*):
            As in [`load_forgotten`]; by default all tasks in effect.

    Returns:
        `pathlib.Path`: A folder for [`ForgettingLedger.load`] and [`load_forgotten`].

    Raises:
        LedgerError: If the repository has no ledger, one that is damaged, edited or of a newer schema, or one that
            lists files that do not belong to a task; if a task does not exist; if `local_dir` holds another run; or if
            files for `local_dir` are missing or differ from their recorded hashes.
        ValueError: If the repository or revision does not exist or is out of reach, or `local_dir` holds something
            other than a run.
        ConnectionError: If the Hub is away or busy for too long and the cache does not hold everything. `local_dir`
            is unchanged then; repeat the call.
        OSError: If a file cannot be written.
    """
    target = None if local_dir is None else as_path(local_dir, "local_dir")
    return _fetch_tasks(repo_id, fetch_ledger(repo_id, revision=revision, token=token), tasks, target, token)


def fetch_to_continue(
    repo_id: str, folder: StrPath | None, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Downloads a published run to a folder in which it can be continued.

    Args:
        repo_id (`str`):
            The repository.
        folder (`str` or `os.PathLike`, *optional*):
            As `local_dir` of [`fetch_run`]; by default the last part of `repo_id`, in the working directory.
        revision (`str`, *optional*):
            As in [`fetch_run`].
        token (`str`, *optional*):
            As in [`fetch_run`].

    Returns:
        `pathlib.Path`: The folder.

    Raises:
        LedgerError: As [`fetch_run`]; also if the published ledger withholds classes, unless `folder` has all of them.
        ValueError, ConnectionError, OSError: As [`fetch_run`].
    """
    target = as_path(checked_repo_id(repo_id).rpartition("/")[2] if folder is None else folder, "folder")
    published = fetch_ledger(repo_id, revision=revision, token=token)
    names_all = Path(target, LEDGER_NAME).exists() and not is_withheld(ForgettingLedger.load(target))
    if is_withheld(published) and not names_all:
        raise WithheldClassesError(
            f"the ledger of {repo_id!r} withholds which classes were forgotten. They cannot be kept out of the "
            "training, which would restore them. Continue in the folder of the original run, which has the full "
            "ledger.",
            tasks=withheld_tasks(published),
        )
    return _fetch_tasks(repo_id, published, None, target, token)


def fetch_ledger(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> ForgettingLedger:
    """Reads the ledger of a published run, after bringing the Hugging Face cache up to date.

    Returns:
        [`ForgettingLedger`]: Its `folder` is the cached snapshot, whose name is the commit.

    Raises:
        LedgerError, ValueError, ConnectionError: As [`fetch_run`].
    """
    checked_repo_id(repo_id)
    try:
        path, is_new = download_file(
            repo_id,
            LEDGER_NAME,
            revision=revision,
            token=token,
            max_bytes=MAX_LEDGER_BYTES,
            error=InvalidLedgerError,
        )
    except RemoteEntryNotFoundError:
        raise LedgerFileError(
            f"the repository {repo_id!r} has no {LEDGER_NAME}; expected one that push_to_hub made. Check the name, or "
            "load a plain adapter with PeftModel.from_pretrained.",
            path=Path(LEDGER_NAME),
            reason="missing",
        ) from None
    with _removed_if_wrong([path] if is_new else []):
        return ForgettingLedger.load(path.parent)


def fetch_repository(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Downloads all published files of a run, for [`verify_repository`]; [`fetch_run`] downloads what loading needs.

    Args:
        repo_id (`str`):
            `"organisation/name"`.
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`.

    Returns:
        `pathlib.Path`: The snapshot in the Hugging Face cache.

    Raises:
        LedgerError, ValueError, ConnectionError: As [`fetch_run`].
    """
    commit = fetch_ledger(repo_id, revision=revision, token=token).folder.name
    return download_snapshot(repo_id, [f"*{suffix}" for suffix in PUBLISHED_SUFFIXES], revision=commit, token=token)


def resolve_run_folder(
    repo_or_folder: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Returns the folder of a run: the given one, or the cached files of a repository. An existing folder wins.

    Raises:
        LedgerError, ValueError, ConnectionError: As [`fetch_run`].
    """
    return folder_or_fetched(
        repo_or_folder, lambda repo_id: fetch_run(repo_id, revision=revision, token=token, tasks=tasks), revision
    )


def folder_or_fetched(repo_or_folder: StrPath, fetch: Callable[[str], Path], revision: str | None = None) -> Path:
    """Returns the given folder, or what `fetch` returns for a repository. An existing folder wins.

    Args:
        repo_or_folder (`str` or `os.PathLike`):
            A folder, or the id of a repository.
        fetch (`Callable`):
            Downloads a repository, given its id, and returns its folder.
        revision (`str`, *optional*):
            The revision that `fetch` downloads. A folder has none.

    Raises:
        InvalidLedgerError: If the value can only be a path, and the path does not exist.
        InvalidInputError: If there is neither a folder nor a repository of that name, or there is a folder and
            `revision` is not `None`.
    """
    try:
        source = as_folder_or_repo(repo_or_folder, "repo_or_folder", "the folder of a run")
    except InvalidInputError as error:  # a missing folder has no ledger
        raise as_ledger_error(error) from None
    if isinstance(source, Path):
        if revision is not None:
            raise InvalidInputError(
                "revision",
                revision,
                f"None, because '{source}' is a folder on this machine",
                "Omit the revision, or work in a directory where no folder has the name of the repository.",
            )
        return source
    try:
        return fetch(source)
    except LedgerError:
        raise
    except ValueError as error:
        expected = "the folder of a run, or a repository on the Hub as 'organisation/name'"
        fix = f"There is no such folder, and {error}"
        if isinstance(error, HubRefusalError):
            raise HubRefusalError("repo_or_folder", source, expected, fix, error.status) from error
        raise InvalidInputError("repo_or_folder", source, expected, fix) from error


def _fetch_tasks(
    repo_id: str,
    ledger: ForgettingLedger,
    tasks: int | Sequence[str] | None,
    target: Path | None,
    token: str | bool | None,
) -> Path:
    """Downloads the files of some tasks of a cached ledger, and installs them in `target`; returns their folder."""
    entries = ledger.select(tasks)
    _download_tasks(repo_id, ledger, entries, token)
    if target is None:
        return ledger.folder
    _download(repo_id, ledger, list(audit_files(ledger)), token)
    ledger.check_files([entry.name for entry in entries])
    target = Path(os.path.abspath(target))
    install_run(ledger, entries, target, repo_id)
    return target


def _download_tasks(
    repo_id: str, ledger: ForgettingLedger, entries: Sequence[TaskEntry], token: str | bool | None
) -> None:
    """Downloads the files of some tasks next to a cached ledger."""
    names = [name for entry in entries for name in listed_files(entry, repo_id)]
    new = _download(repo_id, ledger, names, token)
    with _removed_if_wrong([ledger.folder / name for name in new]):
        ledger.check_files([entry.name for entry in entries if not entry.files.keys().isdisjoint(new)])


def _download(repo_id: str, ledger: ForgettingLedger, names: list[str], token: str | bool | None) -> list[str]:
    """Downloads files next to a cached ledger; returns those that were not in the cache."""
    new = [name for name in names if not (ledger.folder / name).exists()]
    if names:
        patterns = [glob.escape(name) for name in names]
        download_snapshot(repo_id, patterns, revision=ledger.folder.name, token=token)
    for name in names:
        path = safe_join(ledger.folder, name)
        if name.endswith(".json") and path.exists() and path.stat().st_size > MAX_CONFIG_BYTES:
            title = f"the number of bytes of {name} in the repository {repo_id!r}"
            fix = "It cannot be genuine: do not use this repository."
            raise InvalidLedgerError(title, path.stat().st_size, f"{MAX_CONFIG_BYTES} at most", fix)
    return new


@contextmanager
def _removed_if_wrong(paths: Sequence[Path]) -> Iterator[None]:
    """Removes new files from the cache if the block finds them wrong; the cache would keep them forever."""
    try:
        yield
    except LedgerError:
        for path in paths:
            if path.is_symlink():  # to the content, which is stored under the hash of the right content
                (path.parent / os.readlink(path)).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise
