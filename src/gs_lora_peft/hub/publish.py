"""Publishing a run: the repository is built in a folder, whole, before anything is sent."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from ..adapters import check_tasks
from ..errors import InvalidInputError
from ..io import StrPath, as_path, staged_folder, write_bytes_atomic
from ..ledger import (
    KEY_NAME,
    LEDGER_NAME,
    ForgettingLedger,
    InvalidLedgerError,
    LedgerError,
    ledger_bytes,
    listed_files,
    warn_not_forgotten,
)
from .card_metadata import check_card_data
from .client.calls import checked_repo_id, writing_api
from .client.commit import RemoteHead, commit_folder, open_repository, publishable_files, versions_of
from .composite import CompositeReport, check_max_rank, has_composite, write_composite
from .fetch import fetch_ledger
from .install import check_free, continuation_error, copy_audit, is_withheld
from .withhold import withheld_ledger, withholding_key, withholds_by_default

# Files that publishing writes, and may therefore remove.
_OWN_FILES = re.compile(
    r"README\.md|forgetting\.json|figures/[^/]+\.png|audit/[a-z_]+\.(json|md|png)"
    r"|(tasks/task_\d+/)?(adapter_config\.json|gs_lora_config\.json|adapter_model\.safetensors)"
    r"|tasks/task_\d+/weight_difference\.safetensors"
)


@dataclass(frozen=True)
class StagedRepository:
    """A repository as it would be published, in a folder.

    Attributes:
        folder (`Path`):
            The folder.
        files (`list[str]`):
            All files in it, by relative path.
        ledger ([`ForgettingLedger`]):
            The ledger as it would be published.
        composite ([`CompositeReport`] or `None`):
            Rank and error of the adapter of all tasks together; `None` without one, because a task in effect left
            weights instead of an adapter.
    """

    folder: Path
    files: list[str]
    ledger: ForgettingLedger
    composite: CompositeReport | None


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
    """Publishes a run in one commit: card, ledger, the adapter of all tasks together, one of each task, and pictures.

    The report of a recorded audit is published as well, if it is there and classes are not withheld.
    If a task left new values of weights instead of an adapter, there is no adapter of all tasks: [`load_forgotten`]
    loads them. What methods keep for later tasks ([`Method.leave`]) is never published.
    Only safetensors, JSON, Markdown and PNG leave the machine. They are built in a separate folder from the files that
    the ledger lists; checkpoints, optimizer states, logs and data are never sent. Publishing again sends only new
    files. A push that fails leaves the branch as it was (an empty new repository may remain) and can be repeated.
    Commits of others are never overwritten. A run that did not forget is published as well, with a warning here and
    on the card.

    The ledger holds the names of the forgotten classes. Therefore a new repository is private by default, and an
    existing public one is refused. The ledger also lists revoked tasks, but their adapters are not published, and are
    removed if they were.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`.
        repo_id (`str`):
            `"name"` or `"organisation/name"`; made if it does not exist.
        private (`bool`, *optional*, defaults to `True`):
            Visibility of a repository that this call makes. With `False` an existing public one is accepted too.
        commit_message (`str`, *optional*):
            By default the number of requests in effect.
        revision (`str`, *optional*):
            A branch, made if it does not exist; by default the main branch.
        withhold_classes (`bool`, *optional*):
            With `True` no file names a class, its id, or its number of samples. Requests appear by number and a keyed
            digest. The key stays in `folder` as `withheld.key`; keep it, because it can prove later what was
            forgotten. Times are days, and scores whole per cent. Running the model still shows which classes it no
            longer knows. `False` names the classes. By default as the repository was published before; a new
            repository withholds them if `folder` has a `withheld.key`.
        max_rank (`int`, *optional*):
            The largest rank in a layer of the adapter of all tasks together. A larger one is recompressed, and the
            card gives the error. By default the adapter is exact.
        dataset (`str`, *optional*):
            Hub id of the training data, for the card.
        license (`str`, *optional*):
            License for the card; by default the one of the base model, if that is on the Hub.
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
        ConnectionError: If the Hub is away, or busy for too long; repeat the call.
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
    published = _published_ledger(head, api.token)
    if published is not None:
        _check_continues(published, ledger, head.repo_id)
        if withhold_classes is None:
            withhold_classes = is_withheld(published)
    if withhold_classes is None:
        withhold_classes = withholds_by_default(folder)
    if withhold_classes:
        _check_history(api, head)
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
            _check_continues(published, staged.ledger, head.repo_id)
            _check_digests(published, staged.ledger, head.repo_id)
        message = commit_message or f"{len(staged.ledger.active_tasks)} forgetting request(s)"
        return commit_folder(api, head, staged.folder, message, removed=_stale_files(head, staged.files))


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
    """Writes everything that [`push_to_hub`] would publish of a run to a folder.

    This is `README.md`, `forgetting.json`, the adapter of all tasks together, one of each task in effect, pictures,
    and the report of a recorded audit. Only files that the ledger lists are copied, after a check of their hashes. The
    same run gives the same bytes.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`.
        out (`str` or `os.PathLike`):
            The folder to make; a folder that holds files is refused.
        repo_id (`str`, *optional*):
            The repository's name, for the card.
        withhold_classes (`bool`, *optional*):
            As in [`push_to_hub`]; by default `True` if `folder` has a `withheld.key`.
        max_rank (`int`, *optional*):
            As in [`push_to_hub`].
        dataset (`str`, *optional*):
            Hub id of the training data, for the card.
        license (`str`, *optional*):
            License of the base model, for the card.

    Returns:
        [`StagedRepository`]: What was written.

    Raises:
        LedgerError: If there is no ledger, a file is missing or differs from its hash, or the ledger lists files of
            other kinds than a task has. Nothing is written then.
        ValueError: If `out` holds files, or `repo_id`, `max_rank`, `dataset` or `license` is malformed.
        OSError: If a file could not be written.
    """
    # matplotlib takes a second to import; loading and merging do not need it.
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
        composite = write_composite(ledger, staged, max_rank=max_rank) if has_composite(ledger) else None
        published = ledger
        if ledger.audit is not None and (withhold_classes or not copy_audit(ledger, staged)):
            ledger.audit = {**ledger.audit, "files": {}}
        if withhold_classes:
            published = withheld_ledger(ledger, withholding_key(folder, create=True), staged)
        # From memory, because a request that has finished since may have replaced the file.
        content = ledger_bytes(published.to_dict())
        write_bytes_atomic(staged / LEDGER_NAME, content, private=published.names_classes)
        published = ForgettingLedger.load(staged)
        published.check_files(active)
        card = build_card(
            published,
            repo_id=repo_id,
            composite=composite,
            figures=draw_figures(published, staged),
            withheld=withhold_classes,
            dataset=dataset,
            license=license,
        )
        write_bytes_atomic(staged / "README.md", str(card).encode(), private=published.names_classes)
    return StagedRepository(out, publishable_files(out), ForgettingLedger.load(out), composite)


def _published_ledger(head: RemoteHead, token: str | bool | None) -> ForgettingLedger | None:
    """Returns the ledger at the newest commit of a repository, or `None` if the repository is new.

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
        f"It holds other files ({', '.join(sorted(head.files)[:3])}, {len(head.files)} in all) and no {LEDGER_NAME}: "
        "choose another name.",
    )


def _check_continues(published: ForgettingLedger, own: ForgettingLedger, repo_id: str) -> None:
    """Checks that publishing loses nothing: the run has all tasks that are published, and none of them differs.

    Raises:
        LedgerError: If the repository holds tasks that the run lacks, or others.
    """
    if problem := continuation_error(published, own):
        raise InvalidLedgerError(
            "folder",
            str(own.folder),
            f"a run that continues the one published in {repo_id!r}",
            f"This one does not: {problem}. Nothing was sent. If more has been published, fetch that first "
            f"(ContinualForgetter.from_hub({repo_id!r}, ...)) and carry out the missing requests there; or choose "
            "another repository.",
        )


def _check_digests(published: ForgettingLedger, staged: ForgettingLedger, repo_id: str) -> None:
    """Checks that withheld classes keep their digests.

    Raises:
        LedgerError: If the published ledger was made with another key.
    """
    if not is_withheld(staged):
        return
    for entry, new in zip(published.tasks, staged.tasks, strict=False):
        before, now = entry.request.get("digest"), new.request.get("digest")
        if before != now:
            expected = f"{before}, which is published in {repo_id!r}"
            fix = f"'{KEY_NAME}' holds another key than before: restore the former one, or choose another repository."
            raise InvalidLedgerError(f"digest of {entry.name}", now, expected, fix)


def _check_history(api: HfApi, head: RemoteHead) -> None:
    """Checks that no commit of a repository names classes that are to be withheld: deleted files can still be fetched.

    Raises:
        LedgerError: If a commit names them, or its ledger cannot be read.
    """
    for sha in versions_of(api, head, LEDGER_NAME):
        try:
            entries = fetch_ledger(head.repo_id, revision=sha, token=api.token).tasks
            names = any(entry.classes is not None or entry.class_names is not None for entry in entries)
        except LedgerError:  # a damaged or newer ledger may name them
            names = True
        if names:
            fix = f"Commit {sha[:8]} names them, and stays. Delete that repository, or choose another one."
            raise InvalidLedgerError("repo_id", head.repo_id, "a repository whose history names no class", fix)


def _stale_files(head: RemoteHead, staged: Sequence[str]) -> list[str]:
    """Returns the files of an earlier publication that this one no longer has."""
    return sorted(path for path in head.files if _OWN_FILES.fullmatch(path) and path not in staged)


def _license_of_base(api: HfApi, ledger: ForgettingLedger) -> str | None:
    name, revision = ledger.base_model.get("name_or_path"), ledger.base_model.get("revision")
    if not name or not revision:  # not loaded from the Hub: a model there may have the same name by chance
        return None
    try:
        card = api.model_info(name, revision=revision).card_data
    except (HTTPError, OSError, ValueError):  # the license is optional
        return None
    found = card.get("license") if card else None
    return found if isinstance(found, str) else None
