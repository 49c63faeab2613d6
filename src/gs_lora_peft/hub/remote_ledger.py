"""What a repository holds already, and whether a run may be published on top of it."""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from ..errors import InvalidInputError
from ..sequence import ForgettingLedger, LedgerError
from ..sequence.history import history_problem, is_withheld
from ..sequence.ledger import LEDGER_NAME
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
        raise LedgerError(
            f"the run in '{own.folder}' does not continue the one published in {repo_id!r}: {problem}. Nothing was "
            f"sent. If more has been published, fetch that first (ContinualForgetter.from_hub({repo_id!r}, ...)) "
            "and carry out there what is missing; or choose another repository."
        )


def check_withholding(published: ForgettingLedger, staged: ForgettingLedger, repo_id: str) -> None:
    """Checks that withheld classes stay withheld, by one key.

    Raises:
        LedgerError: If the published ledger was made with another key.
    """
    if not is_withheld(staged):
        return
    for entry, new in zip(published.tasks, staged.tasks, strict=False):
        if entry.request.get("digest") != new.request.get("digest"):
            raise LedgerError(
                f"the digest of {entry.name} published in {repo_id!r} was made with another key than the one in "
                "'withheld.key'. Restore that key, or choose another repository."
            )


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
            raise LedgerError(
                f"the history of {head.repo_id!r} names the classes (commit {sha[:8]}), and would go on doing so. To "
                "withhold them, delete that repository, or choose another one."
            )


def stale_files(head: RemoteHead, staged: list[str]) -> list[str]:
    """Files that an earlier publication left and this one no longer has."""
    return sorted(path for path in head.files if _OWN_FILES.fullmatch(path) and path not in staged)
