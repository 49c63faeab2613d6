"""Some tasks of a run as one plain LoRA adapter, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidInputError
from ..sequence import ForgettingLedger
from ..sequence.placing import check_free
from ..sequence.remarks import warn_where_it_goes
from ..sequence.remote import sequence_folder
from ..sequence.selection import why_none
from ..storage import StrPath, as_path, staged_folder
from .composite import CompositeReport, check_max_rank, write_composite


def export_forgotten(
    repo_or_folder: StrPath,
    out: StrPath,
    *,
    tasks: int | Sequence[str] | None = None,
    max_rank: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> CompositeReport:
    """
    Write what some tasks of a run do together as one plain LoRA adapter, which stock PEFT and transformers load.

    One task is written byte for byte as it is in the run; of several the adapter is their sum, as in the root of a
    published repository. A warning says which of the tasks did not forget.

    Args:
        repo_or_folder (`str` or `os.PathLike`):
            As in [`load_forgotten`].
        out (`str` or `os.PathLike`):
            The folder to make. One that holds files is refused.
        tasks (`int` or list of `str`, *optional*):
            As in [`load_forgotten`]; by default all tasks in effect.
        max_rank (`int`, *optional*):
            The largest rank that the adapter may have in a layer; more is recompressed. By default it is exact.
        revision (`str`, *optional*):
            As in [`load_forgotten`].
        token (`str`, *optional*):
            As in [`load_forgotten`].

    Returns:
        [`CompositeReport`]: The rank of the adapter, and what recompressing it lost.

    Raises:
        LedgerError: If files or tasks are not what the ledger says.
        ValueError: If `out` holds files, there is nothing to export, `max_rank` is not a whole number from 1 up, or
            the repository is out of reach.
        OSError: If a file could not be written.

        After an error `out` is as it was.
    """
    out = as_path(out, "out")
    check_free(out)
    check_max_rank(max_rank)
    folder = sequence_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    if not ledger.select(tasks):
        fix = f"Nothing is exported: {why_none(ledger.tasks, tasks)}"
        raise InvalidInputError("tasks", tasks, f"at least one task in effect of the run in '{folder}'", fix)
    warn_where_it_goes(ledger, tasks)
    with staged_folder(out) as staged:
        return write_composite(ledger, staged, tasks=tasks, max_rank=max_rank)
