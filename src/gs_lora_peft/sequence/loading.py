"""Rebuilding a model that has forgotten, from a folder with a ledger or from the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ..errors import InvalidInputError
from ..tuner.compiled import uncompiled
from ..tuner.quantisation import refuse_quantised
from .adapters import check_adapters, read_adapters
from .fingerprint import model_identity
from .ledger import ForgettingLedger
from .merging import attach_adapters, merge_adapters
from .remote import sequence_folder


def load_forgotten(
    base_model: PreTrainedModel,
    repo_or_folder: str | os.PathLike,
    tasks: int | Sequence[str] | None = None,
    merge: bool = False,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> nn.Module:
    """
    Rebuild the model as it was after some of its forgetting tasks. Ledger, files and base weights are checked first.

    Args:
        base_model (`transformers.PreTrainedModel`): the model the tasks were trained on, changed in place.
        repo_or_folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`, or a repository that [`push_to_hub`] made (`"organisation/name"`). A
            folder that exists wins. Of a repository only the ledger and files of the chosen tasks are downloaded.
        tasks (`int` or list of `str`, *optional*): the first so many tasks in effect, or their names (`"task_001"`).
            By default all; 0 gives the base model back. Tasks that were revoked are left out.
        merge (`bool`, *optional*, defaults to `False`):
            `True`: the tasks are merged into the weights in order and the bare model is returned, bit-equal to the
            model that was trained on. `False`: a `PeftModel` with one frozen adapter per task, all active.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository; by default its main branch. A folder has none.
        token (`str`, *optional*): for private repositories; by default the one of `hf auth login`.

    Returns:
        `PeftModel`, or the base model itself with `merge=True` or without tasks; in eval mode.

    Raises:
        LedgerError: if the ledger is missing, edited or of a newer schema, if a file is missing or differs from its
            recorded hash, if the base weights are not those the ledger names, if a task does not exist, or if an
            adapter does not fit the model. Nothing is changed then.
        ValueError: if the model holds adapters already or is quantised, the repository does not exist or may not be
            read, or there is a folder although a revision was asked for.
        ConnectionError: if the Hub is out of reach and the cache does not hold everything; the call can be repeated.
    """
    base_model = uncompiled(base_model)
    check_bare(base_model)
    folder = sequence_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
    ledger = ForgettingLedger.load(folder)
    adapters = read_adapters(ledger, tasks)
    ledger.check_base(model_identity(base_model))
    check_adapters(base_model, adapters)
    if merge or not adapters:
        return merge_adapters(base_model, adapters).eval()
    return attach_adapters(base_model, adapters).eval()


def check_bare(model: nn.Module) -> None:
    """Raises ValueError if a model holds adapters, or is quantised: tasks rest on exact weights."""
    refuse_quantised(model)
    if hasattr(model, "peft_config"):
        fix = "It holds adapters already: model.unload() takes them off, model.merge_and_unload() keeps what they do."
        raise InvalidInputError("base_model", type(model).__name__, "a bare model, because tasks bring adapters", fix)
