"""Fetching a published run: the ledger first, then only what it vouches for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

from ..errors import InvalidInputError
from ..io import StrPath, as_path, safe_join
from ..ledger import (
    KEY_NAME,
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
from .client.calls import HubRefusalError, as_folder_or_repo, call_hub, checked_repo_id, is_away, looks_local
from .client.commit import RemoteHead, versions_of
from .install import continuation_error, install_run, is_withheld, withheld_tasks

Downloaded = TypeVar("Downloaded")


def fetch_run(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_dir: StrPath | None = None,
    tasks: int | Sequence[str] | None = None,
) -> Path:
    """
    Download a published run: its ledger, and the files of its tasks that the ledger lists. Nothing else is fetched.

    What is in the Hugging Face cache is not downloaded again, and is enough when offline (`HF_HUB_OFFLINE=1`).

    Args:
        repo_id (`str`):
            `"organisation/name"`, as given to [`push_to_hub`].
        revision (`str`, *optional*):
            Branch, tag or commit; by default the main branch.
        token (`str`, *optional*):
            By default the one of `hf auth login`; needed for private repositories.
        local_dir (`str` or `os.PathLike`, *optional*):
            Folder that is to hold the run, so that it can be continued. Made if missing. One that holds the same run
            gets what it lacks; a run that is ahead of the published one is left as it is. Hashes are checked first,
            and a failure leaves the folder as it was. By default the files stay in the Hugging Face cache.
        tasks (`int` or list of `str`, *optional*):
            As in [`load_forgotten`]; by default all tasks in effect.

    Returns:
        `pathlib.Path`: A folder that [`ForgettingLedger.load`] and [`load_forgotten`] take.

    Raises:
        LedgerError: If the repository has no ledger, one that is damaged, edited or of a newer schema, or one that
            lists files that do not belong to a task; if a task does not exist; if `local_dir` holds another run; or if
            files for `local_dir` are missing or differ from their recorded hashes.
        ValueError: If the repository or revision does not exist or is out of reach, or `local_dir` holds something
            other than a run.
        ConnectionError: If the Hub is away or busy for too long and the cache does not hold everything. Nothing was
            put into `local_dir` then, and the call can be repeated.
        OSError: If a file cannot be written.
    """
    target = None if local_dir is None else as_path(local_dir, "local_dir")
    ledger = fetch_ledger(repo_id, revision=revision, token=token)
    entries = ledger.select(tasks)
    _fetch_files(repo_id, ledger, entries, token)
    if target is None:
        return ledger.folder
    ledger.check_files([entry.name for entry in entries])
    target = Path(os.path.abspath(target))
    install_run(ledger, entries, target, repo_id)
    return target


def fetch_ledger(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> ForgettingLedger:
    """The ledger of a published run, read from the Hugging Face cache after it was brought up to date.

    Returns:
        [`ForgettingLedger`]: Its `folder` is the cached snapshot, whose name is the commit.

    Raises:
        LedgerError, ValueError, ConnectionError: As [`fetch_run`].
    """
    checked_repo_id(repo_id)

    def download() -> ForgettingLedger:
        away = is_away(repo_id, LEDGER_NAME, revision=revision, token=token)
        known = hf_hub_download(
            repo_id, LEDGER_NAME, revision=revision, token=token, dry_run=True, local_files_only=away
        )
        if known.file_size is not None and known.file_size > MAX_LEDGER_BYTES:
            name = f"the number of bytes of {LEDGER_NAME} in the repository {repo_id!r}"
            fix = "It is not downloaded, because it cannot be genuine."
            raise InvalidLedgerError(name, known.file_size, f"{MAX_LEDGER_BYTES} at most", fix)
        path = Path(hf_hub_download(repo_id, LEDGER_NAME, revision=revision, token=token, local_files_only=away))
        with _not_kept([] if known.is_cached else [path]):
            return ForgettingLedger.load(path.parent)

    return downloaded(download, repo_id)


def fetch_to_continue(
    repo_id: str, folder: StrPath | None, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Brings a published run into a folder in which requests can be added to it.

    Args:
        repo_id (`str`):
            The repository.
        folder (`str` or `os.PathLike`, *optional*):
            As `local_dir` of [`fetch_run`]; by default the last part of the repository's name, in the working
            directory.

    Raises:
        LedgerError: Also if the published ledger withholds classes, unless `folder` has all of them.
        ValueError, ConnectionError, OSError: As [`fetch_run`].
    """
    target = as_path(checked_repo_id(repo_id).rpartition("/")[2] if folder is None else folder, "folder")
    published = fetch_ledger(repo_id, revision=revision, token=token)
    is_full = Path(target, LEDGER_NAME).exists() and not is_withheld(ForgettingLedger.load(target))
    if is_withheld(published) and not is_full:
        raise WithheldClassesError(
            f"the ledger of {repo_id!r} withholds which classes were forgotten, so that they cannot be kept out of "
            "the training and would be learned again. Continue in the folder of the original run, which has the full "
            "ledger.",
            tasks=withheld_tasks(published),
        )
    return fetch_run(repo_id, revision=revision, token=token, local_dir=target)


def resolve_run_folder(
    repo_or_folder: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder of a run: the given one, or the cached files of a repository. A folder that exists wins.

    Raises:
        LedgerError, ValueError, ConnectionError: As [`fetch_run`].
    """
    return folder_or_fetched(
        repo_or_folder, lambda repo_id: fetch_run(repo_id, revision=revision, token=token, tasks=tasks), revision
    )


def folder_or_fetched(repo_or_folder: StrPath, fetch: Callable[[str], Path], revision: str | None = None) -> Path:
    """The folder that is given, or what `fetch` brings of a repository. A folder that exists wins.

    Raises:
        InvalidLedgerError: It can only be a path, and there is nothing.
        InvalidInputError: There is neither a folder nor a repository of that name.
        ValueError: There is a folder, and `revision` asks for a commit that it need not be.
    """
    try:
        source = as_folder_or_repo(repo_or_folder, "repo_or_folder", "the folder of a run")
    except InvalidInputError as error:  # a run that is not there has no ledger, either
        raise as_ledger_error(error) from None
    if isinstance(source, Path):
        if revision is not None:
            raise InvalidInputError(
                "revision",
                revision,
                f"None, because '{source}' is a folder on this machine",
                "Leave the revision out, or work where no folder hides the repository.",
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


def _fetch_files(
    repo_id: str, ledger: ForgettingLedger, entries: Sequence[TaskEntry], token: str | bool | None
) -> None:
    """Downloads the files of some tasks next to a cached ledger."""
    names = [name for entry in entries for name in listed_files(entry, repo_id)]
    if names:
        patterns = [glob.escape(name) for name in names]
        commit, new = ledger.folder.name, [name for name in names if not (ledger.folder / name).exists()]
        downloaded(lambda: snapshot_download(repo_id, revision=commit, token=token, allow_patterns=patterns), repo_id)
        with _not_kept([ledger.folder / name for name in new]):
            ledger.check_files([entry.name for entry in entries if not entry.files.keys().isdisjoint(new)])
    for name in names:
        path = safe_join(ledger.folder, name)
        if name.endswith(".json") and path.exists() and path.stat().st_size > MAX_CONFIG_BYTES:
            title = f"the number of bytes of {name} in the repository {repo_id!r}"
            fix = "It cannot be genuine: do not use this repository."
            raise InvalidLedgerError(title, path.stat().st_size, f"{MAX_CONFIG_BYTES} at most", fix)


@contextmanager
def _not_kept(paths: Sequence[Path]) -> Iterator[None]:
    """Takes new files out of the cache if the block finds them wrong: they would stand for the right ones for ever."""
    try:
        yield
    except LedgerError:
        for path in paths:
            if path.is_symlink():  # to the content, which has the name that the right one would have
                (path.parent / os.readlink(path)).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise


def downloaded(download: Callable[[], Downloaded], repo_id: str) -> Downloaded:
    """What a download returns, its errors in the words of this package; see [`call_hub`]."""
    try:
        return call_hub(download, repo_id)
    except RemoteEntryNotFoundError:
        raise LedgerFileError(
            f"the repository {repo_id!r} has no {LEDGER_NAME}; expected one that push_to_hub made. Check the name, or "
            "load a plain adapter with PeftModel.from_pretrained.",
            path=Path(LEDGER_NAME),
            reason="missing",
        ) from None
    except EntryNotFoundError as error:
        mistyped = "If a path was meant, check it. " if looks_local(repo_id) else ""
        raise ConnectionError(
            f"there is no such folder: {repo_id!r}; and as a repository it is not (wholly) in the cache, while the "
            f"Hub cannot be asked. {mistyped}Go online and repeat the call."
        ) from error


# What publishing writes, and thus what it may take away again.
_OWN_FILES = re.compile(
    r"README\.md|forgetting\.json|figures/[^/]+\.png"
    r"|(tasks/task_\d+/)?(adapter_config\.json|gs_lora_config\.json|adapter_model\.safetensors)"
)


def published_ledger(head: RemoteHead, token: str | bool | None = None) -> ForgettingLedger | None:
    """The ledger at the newest commit of a repository; `None` in one that is new.

    Raises:
        LedgerError: If it is damaged, edited or of a newer schema.
        InvalidInputError: If the repository holds something else.
    """
    if LEDGER_NAME in head.files:
        return fetch_ledger(head.repo_id, revision=head.sha, token=token)
    if head.is_new:
        return None
    raise InvalidInputError(
        "repo_id",
        head.repo_id,
        "a new repository, or one that push_to_hub made",
        f"This one holds files of something else ({', '.join(sorted(head.files)[:3])}, {len(head.files)} in all) and "
        f"no {LEDGER_NAME}: choose another name.",
    )


def check_continues(published: ForgettingLedger, own: ForgettingLedger, repo_id: str) -> None:
    """Checks that nothing that was published would be lost: all of its tasks are in the run, and nothing differs.

    Raises:
        LedgerError: If the Hub holds something newer or something else.
    """
    if problem := continuation_error(published, own):
        raise InvalidLedgerError(
            "folder",
            str(own.folder),
            f"a run that continues the one published in {repo_id!r}",
            f"This one does not: {problem}. Nothing was sent. If more has been published, fetch that first "
            f"(ContinualForgetter.from_hub({repo_id!r}, ...)) and carry out there what is missing; or choose another "
            "repository.",
        )


def check_withholding(published: ForgettingLedger, staged: ForgettingLedger, repo_id: str) -> None:
    """Checks that withheld classes stay withheld, by one key.

    Raises:
        LedgerError: If the published ledger was made with another key.
    """
    if not is_withheld(staged):
        return
    for entry, new in zip(published.tasks, staged.tasks, strict=False):
        before, now = entry.request.get("digest"), new.request.get("digest")
        if before != now:
            expected = f"{before}, which is published in {repo_id!r}"
            fix = f"'{KEY_NAME}' is another key than the one at that time: restore that, or choose another repository."
            raise InvalidLedgerError(f"digest of {entry.name}", now, expected, fix)


def check_history(api: HfApi, head: RemoteHead) -> None:
    """Checks that no commit of a repository names classes that are to be withheld: deleted files can still be fetched.

    Raises:
        LedgerError: If a commit names them, or its ledger cannot be read.
    """
    for sha in versions_of(api, head, LEDGER_NAME):
        try:
            entries = fetch_ledger(head.repo_id, revision=sha, token=api.token).tasks
            names = any(entry.classes is not None or entry.class_names is not None for entry in entries)
        except LedgerError:  # of a newer schema, or damaged: it may name them
            names = True
        if names:
            fix = f"Commit {sha[:8]} names them, and stays. Delete that repository, or choose another one."
            raise InvalidLedgerError("repo_id", head.repo_id, "a repository whose history names no class", fix)


def stale_files(head: RemoteHead, staged: list[str]) -> list[str]:
    """Files that an earlier publication left and this one no longer has."""
    return sorted(path for path in head.files if _OWN_FILES.fullmatch(path) and path not in staged)
