"""Upload of a run: the ledger and the files it vouches for, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from ..sequence import ForgettingLedger


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = True,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """
    Publish a run in one commit: `forgetting.json` and the files of its tasks (safetensors and JSON).

    Only what the ledger lists leaves the machine, after its hashes were checked; checkpoints, optimizer states, logs
    and data never do. The ledger holds the names of the forgotten classes, so a new repository is private unless asked
    otherwise, and one that exists and is public is refused.

    Args:
        folder (`str` or `os.PathLike`): a folder with `forgetting.json`.
        repo_id (`str`): `"name"` or `"organisation/name"`; made if it does not exist.
        private (`bool`, *optional*, defaults to `True`): visibility of a repository that is made by this
            call. With `False` an existing public one is accepted too.
        commit_message (`str`, *optional*): by default how many requests were carried out.
        token (`str`, *optional*): by default the one of `hf auth login`.

    Returns:
        `str`: address of the commit.

    Raises:
        LedgerError: if there is no ledger, or a file is missing or differs from its hash; nothing is sent then.
        ValueError: if the repository is public and `private` is not `False`; nothing is sent then.
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses.
    """
    ledger = ForgettingLedger.load(folder)
    ledger.check_files()
    names = [ledger.path.name, *(name for entry in ledger.active_tasks for name in entry.files)]
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder, name)) for name in names]
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    if private is not False and not api.repo_info(repo.repo_id).private:
        raise ValueError(
            f"the repository {repo.repo_id!r} exists and is public, and the ledger names the forgotten classes. Make "
            "it private, choose another one, or pass private=False to publish them."
        )
    message = commit_message or f"{len(ledger.active_tasks)} forgetting request(s)"
    return str(api.create_commit(repo.repo_id, operations, commit_message=message).commit_url)
