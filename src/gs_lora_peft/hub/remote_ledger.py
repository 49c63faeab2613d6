"""What a repository holds already, and whether a run may be published on top of it."""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from ..errors import InvalidInputError
from ..sequence import ForgettingLedger, LedgerError
from ..sequence.history import history_problem, is_withheld
from ..sequence.layout import KEY_NAME, LEDGER_NAME
from ..sequence.plain import InvalidLedgerError
from ..sequence.remote import fetch_ledger
from ..storage.hub_commit import RemoteHead, versions_of

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
    if problem := history_problem(published, own):
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
