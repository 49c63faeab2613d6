"""A run as the repository that is published: built in a folder, whole, before anything is sent."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from ..adapters import check_tasks
from ..io import StrPath, as_path, staged_folder, write_bytes_atomic
from ..ledger import LEDGER_NAME, ForgettingLedger, ledger_bytes, listed_files, warn_not_forgotten
from .card_metadata import check_card_data
from .client.calls import checked_repo_id, writing_api
from .client.commit import PUBLISHED_SUFFIXES, commit_folder, open_repository, publishable_files
from .composite import CompositeReport, check_max_rank, write_composite
from .fetch import (
    check_continues,
    check_history,
    check_withholding,
    downloaded,
    fetch_ledger,
    published_ledger,
    stale_files,
)
from .install import check_free, is_withheld
from .withhold import withheld_ledger, withholding_key, withholds_by_default


@dataclass(frozen=True)
class StagedRepository:
    """What would be published.

    Attributes:
        folder (`Path`):
            Where it is.
        files (`list[str]`):
            Everything in it, by relative path.
        ledger ([`ForgettingLedger`]):
            The ledger as it would be published.
        composite ([`CompositeReport`]):
            Rank and error of the adapter of all tasks together.
    """

    folder: Path
    files: list[str]
    ledger: ForgettingLedger
    composite: CompositeReport


def stage_repository(
    folder: StrPath,
    out: StrPath,
    repo_id: str | None = None,
    *,
    withhold_classes: bool | None = None,
    max_rank: int | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> StagedRepository:
    """
    Write everything that [`push_to_hub`] would publish of a run to a folder.

    `README.md`, `forgetting.json`, the adapter of all tasks together, one of each task in effect, and pictures. Only
    what the ledger vouches for is taken over, after its hashes were checked. The same run gives the same bytes.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`.
        out (`str` or `os.PathLike`):
            The folder to make; one that holds files is refused.
        repo_id (`str`, *optional*):
            The repository's name, for the card.
        withhold_classes (`bool`, *optional*):
            As in [`push_to_hub`]; by default as it was published the last time.
        max_rank (`int`, *optional*):
            As in [`push_to_hub`].
        dataset (`str`, *optional*):
            The Hub id of the data, for the card.
        license (`str`, *optional*):
            The license of the base model, for the card.

    Returns:
        [`StagedRepository`]: What was written.

    Raises:
        LedgerError: If there is no ledger, a file is missing or differs from its hash, or the ledger lists files of
            other kinds than a task has. Nothing is written then.
        ValueError: If `out` holds files, or `repo_id`, `max_rank`, `dataset` or `license` is malformed.
        OSError: If a file could not be written.
    """
    # Drawing takes a second to import; loading and merging do not need it.
    from .card import build_card
    from .run_figures import draw_figures

    folder, out = as_path(folder, "folder"), as_path(out, "out")
    check_free(out)
    check_max_rank(max_rank)
    check_card_data(dataset=dataset, license=license)
    if repo_id is not None:
        checked_repo_id(repo_id)
    ledger = ForgettingLedger.load(folder)
    if withhold_classes is None:
        withhold_classes = withholds_by_default(folder)
    active = [entry.name for entry in ledger.active_tasks]
    check_tasks(ledger, active)
    warn_not_forgotten(ledger)
    files = [name for entry in ledger.active_tasks for name in listed_files(entry, os.fspath(folder))]
    with staged_folder(out) as staged:
        for name in files:
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder, name), target)
        composite = write_composite(ledger, staged, max_rank=max_rank)
        if withhold_classes:
            published = withheld_ledger(ledger, withholding_key(folder, create=True), staged)
        else:
            published = ledger
        # The ledger as it was read: its file may have been replaced since by a request that was carried out.
        content = ledger_bytes(published.to_dict())
        write_bytes_atomic(staged / LEDGER_NAME, content, private=published.names_classes)
        published = ForgettingLedger.load(staged)
        published.check_files(active)
        figures = draw_figures(published, staged)
        card = build_card(
            published,
            repo_id=repo_id,
            composite=composite,
            figures=figures,
            withheld=withhold_classes,
            dataset=dataset,
            license=license,
        )
        write_bytes_atomic(staged / "README.md", str(card).encode(), private=published.names_classes)
    return StagedRepository(out, publishable_files(out), ForgettingLedger.load(out), composite)


def fetch_repository(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """
    Download all that was published of a run, for [`verify_repository`]; [`fetch_run`] brings what loading needs.

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
    patterns = [f"*{suffix}" for suffix in PUBLISHED_SUFFIXES]
    return Path(
        downloaded(lambda: snapshot_download(repo_id, revision=commit, token=token, allow_patterns=patterns), repo_id)
    )


def push_to_hub(
    folder: StrPath,
    repo_id: str,
    *,
    private: bool = True,
    commit_message: str | None = None,
    revision: str | None = None,
    withhold_classes: bool | None = None,
    max_rank: int | None = None,
    dataset: str | None = None,
    license: str | None = None,
    token: str | bool | None = None,
) -> str:
    """
    Publish a run in one commit: card, ledger, the adapter of all tasks together, one of each task, and pictures.

    Only safetensors, JSON, Markdown and PNG leave the machine, built in a folder of their own from what the ledger
    vouches for; checkpoints, optimizer states, logs and data never do. Publishing again sends only what is new. A push
    that fails leaves the branch as it was (a repository made for it may remain, empty) and can be repeated. What
    others have published in the meantime is never overwritten. A run that did not forget is published as well;
    a warning and the card say so.

    The ledger holds the names of the forgotten classes, so a new repository is private unless asked otherwise, and one
    that exists and is public is refused. Of tasks that were revoked the ledger tells, but their adapters are not
    published, and are taken away where they were.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`.
        repo_id (`str`):
            `"name"` or `"organisation/name"`; made if it does not exist.
        private (`bool`, *optional*, defaults to `True`):
            Visibility of a repository that is made by this call. With `False` an existing public one is accepted too.
        commit_message (`str`, *optional*):
            By default how many requests are in effect.
        revision (`str`, *optional*):
            A branch, made if it does not exist; by default the main one.
        withhold_classes (`bool`, *optional*):
            `True`: no file names a class, its id, or how many samples it has; requests appear by number and a keyed
            digest, whose key `withheld.key` stays in `folder` (keep it: with it one can prove later what was
            forgotten). Times are days, and scores whole per cent. Running the model still shows what it no longer
            knows. By default as the repository was published before, and a new one as the run was: withheld if it ever
            was (`folder` has a `withheld.key`), else named. `False` names the classes.
        max_rank (`int`, *optional*):
            The largest rank that the adapter of all tasks together may have in a layer; more is recompressed, and the
            card says with what error. By default it is exact.
        dataset (`str`, *optional*):
            Hub id of the data the run was trained on, for the card.
        license (`str`, *optional*):
            For the card; by default the one of the base model, if that is on the Hub.
        token (`str`, *optional*):
            By default the one of `hf auth login`.

    Returns:
        `str`: Address of the commit.

    Raises:
        LedgerError: If there is no ledger, a file is missing or differs from its hash, or if what the repository holds
            is not an earlier state of this run, or names in any commit the classes that are to be withheld. Nothing is
            sent then.
        ValueError: If the repository's name is malformed, it is public and `private` is not `False`, belongs to
            another user or holds something else, there is no token, others have committed in the meantime, or
            `max_rank`, `dataset` or `license` is malformed.
        ConnectionError: If the Hub is away, or busy for too long; the call can be repeated.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    folder = as_path(folder, "folder")
    checked_repo_id(repo_id)
    check_max_rank(max_rank)
    check_card_data(dataset=dataset, license=license)
    ledger = ForgettingLedger.load(folder)
    check_tasks(ledger, [entry.name for entry in ledger.active_tasks])
    api = writing_api(token)
    head = open_repository(api, repo_id, revision=revision, private=private)
    published = published_ledger(head, api.token)
    if published is not None:
        check_continues(published, ledger, head.repo_id)
        if withhold_classes is None:
            withhold_classes = is_withheld(published)
    if withhold_classes is None:
        withhold_classes = withholds_by_default(folder)
    if withhold_classes:
        check_history(api, head)
    with tempfile.TemporaryDirectory() as scratch:
        staged = stage_repository(
            folder,
            Path(scratch, "repository"),
            head.repo_id,
            withhold_classes=withhold_classes,
            max_rank=max_rank,
            dataset=dataset,
            license=license or _license_of_base(api, ledger),
        )
        if published is not None:
            check_continues(published, staged.ledger, head.repo_id)
            check_withholding(published, staged.ledger, head.repo_id)
        message = commit_message or f"{len(staged.ledger.active_tasks)} forgetting request(s)"
        return commit_folder(api, head, staged.folder, message, removed=stale_files(head, staged.files))


def _license_of_base(api: HfApi, ledger: ForgettingLedger) -> str | None:
    name, revision = ledger.base_model.get("name_or_path"), ledger.base_model.get("revision")
    if not name or not revision:  # not loaded from the Hub: another model there may happen to have the same name
        return None
    try:
        card = api.model_info(name, revision=revision).card_data
    except (HTTPError, OSError, ValueError):  # a card without a licence is better than none
        return None
    found = card.get("license") if card else None
    return found if isinstance(found, str) else None
