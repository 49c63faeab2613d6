"""Rebuilding a model that has forgotten, from a folder or from the Hub, and the model on which a run rests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .. import models
from ..adapters import attach_adapters, check_adapters, merge_adapters, model_identity, read_adapters
from ..compat import refuse_quantised, unwrapped
from ..errors import InvalidInputError
from ..io import StrPath
from ..ledger import ForgettingLedger
from .client.calls import as_folder_or_repo, find_source
from .fetch import resolve_run_folder


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
        base_model (`transformers.PreTrainedModel`):
            The model the tasks were trained on, changed in place.
        repo_or_folder (`str` or `os.PathLike`):
            A folder with `forgetting.json`, or a repository that [`push_to_hub`] made (`"organisation/name"`). A
            folder that exists wins. Of a repository only the ledger and files of the chosen tasks are downloaded.
        tasks (`int` or list of `str`, *optional*):
            The first so many tasks in effect, or their names (`"task_001"`). By default all; 0 gives the base model
            back. Tasks that were revoked are left out.
        merge (`bool`, *optional*, defaults to `False`):
            `True`: the tasks are merged into the weights in order and the bare model is returned, bit-equal to the
            model that was trained on. `False`: a `PeftModel` with one frozen adapter per task, all active.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository; by default its main branch. A folder has none.
        token (`str`, *optional*):
            For private repositories; by default the one of `hf auth login`.

    Returns:
        `PeftModel`, or the base model itself with `merge=True` or without tasks; in eval mode.

    Raises:
        LedgerError: If the ledger is missing, edited or of a newer schema, if a file is missing or differs from its
            recorded hash, if the base weights are not those the ledger names, if a task does not exist, or if an
            adapter does not fit the model. Nothing is changed then.
        ValueError: If the model holds adapters already or is quantised, the repository does not exist or may not be
            read, or there is a folder although a revision was asked for.
        ConnectionError: If the Hub is out of reach and the cache does not hold everything; the call can be repeated.
    """
    base_model = unwrapped(base_model)
    check_bare(base_model)
    folder = resolve_run_folder(repo_or_folder, tasks=tasks, revision=revision, token=token)
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


_NAME, _WHAT = "base_model", "the folder of a model"


def load_base_model(ledger: ForgettingLedger, source: StrPath, *, token: str | bool | None = None) -> Any:
    """Load the base model of a run with the class that its ledger names.

    Args:
        ledger ([`ForgettingLedger`]):
            The run.
        source (`str` or `os.PathLike`):
            A folder, or a Hub id (loaded at the revision that the ledger names for it).
        token (`str`, *optional*):
            By default the one of `hf auth login`.

    Returns:
        `transformers.PreTrainedModel`: The model. Its weights are not checked here.

    Raises:
        ValueError: If transformers has no such class, or `source` is neither a folder nor a repository.
        OSError: If the model cannot be loaded; ConnectionError if the Hub is away and the cache does not hold it.
    """
    model_class = _model_class(ledger)
    return model_class.from_pretrained(**base_source(ledger, source, token=token))


def base_source(ledger: ForgettingLedger, source: StrPath, *, token: str | bool | None = None) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that find the base model, or its processor.

    Raises:
        ValueError, ConnectionError: As [`find_source`].
    """
    revision = base_revision(ledger, model_source(source))
    found = find_source(source, _NAME, _WHAT, filename=CONFIG_NAME, revision=revision, token=token)
    return {
        "pretrained_model_name_or_path": found.place,
        "revision": revision,
        "token": token,
        "local_files_only": found.is_away,
    }


def model_source(source: StrPath) -> str:
    """A folder that exists, or a Hub id that may or may not exist; nothing is asked of the network.

    Raises:
        InvalidInputError: If it can only be a path, and nothing is there.
    """
    return os.fspath(as_folder_or_repo(source, _NAME, _WHAT))


def base_revision(ledger: ForgettingLedger, source: str) -> str:
    """What to load from `source`: the commit that the ledger names, if it is that Hub id."""
    base = ledger.base_model
    is_known = base.get("name_or_path") == source and not os.path.isdir(source)
    return (base.get("revision") if is_known else None) or "main"


def _model_class(ledger: ForgettingLedger) -> type[PreTrainedModel]:
    name = ledger.base_model.get("model_class")
    found = getattr(transformers, name, None) or getattr(models, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InvalidInputError(
            f"model_class in the ledger in '{ledger.folder}'",
            name,
            "a model class of transformers or of this package",
            "Load the model yourself and pass it.",
        )
    return found
