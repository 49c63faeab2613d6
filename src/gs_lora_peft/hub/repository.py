"""A run as the repository that is published: built in a folder, whole, before anything is sent."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ..sequence import ForgettingLedger
from ..sequence.adapters import check_tasks
from ..sequence.ledger import LEDGER_NAME
from ..sequence.ledger_file import ledger_bytes
from ..sequence.placing import check_free
from ..sequence.remarks import warn_where_it_goes
from ..sequence.remote import downloaded, fetch_ledger
from ..sequence.task_files import listed_files
from ..storage import StrPath, as_path, staged_folder, write_bytes_atomic
from ..storage.hub_calls import checked_repo_id
from ..storage.hub_commit import PUBLISHED_SUFFIXES, publishable_files
from .composite import CompositeReport, check_max_rank, write_composite
from .metadata import check_card_data
from .withholding import withheld_ledger, withholding_key, withholds_by_default


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
    from .figures import draw_figures

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
    warn_where_it_goes(ledger)
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
    Download all that was published of a run, for [`verify_repository`]; [`fetch_sequence`] brings what loading needs.

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
        LedgerError, ValueError, ConnectionError: As [`fetch_sequence`].
    """
    commit = fetch_ledger(repo_id, revision=revision, token=token).folder.name
    patterns = [f"*{suffix}" for suffix in PUBLISHED_SUFFIXES]
    return Path(
        downloaded(lambda: snapshot_download(repo_id, revision=commit, token=token, allow_patterns=patterns), repo_id)
    )
