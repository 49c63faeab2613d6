"""Loading the model on which a run rests."""

from __future__ import annotations

import os
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .. import models
from ..sequence import ForgettingLedger
from ..storage import StrPath
from ..storage.hub_calls import as_folder_or_repo, is_away


def load_base_model(ledger: ForgettingLedger, source: StrPath, *, token: str | bool | None = None) -> Any:
    """Load the base model of a run with the class that its ledger names.

    Args:
        ledger ([`ForgettingLedger`]): the run.
        source (`str` or `os.PathLike`): a folder, or a Hub id (at the revision that the ledger names, if it names it).
        token (`str`, *optional*): by default the one of `hf auth login`.

    Returns:
        `transformers.PreTrainedModel`: the model; whether its weights are the right ones is not checked here.

    Raises:
        ValueError: if transformers has no such class, or `source` can only be a path and nothing is there.
        OSError: if the model cannot be loaded.
    """
    place = model_source(source)
    revision = base_revision(ledger, place)
    # transformers reaches for a Hub that is away for half a minute, and for each of several files.
    away = not os.path.isdir(place) and is_away(place, CONFIG_NAME, revision=revision, token=token)
    return _model_class(ledger).from_pretrained(place, token=token, revision=revision, local_files_only=away)


def model_source(source: StrPath, name: str = "base_model") -> str:
    """Where a model is to be loaded from, as transformers takes it: a folder that exists, or a Hub id.

    Raises:
        InvalidInputError: if it can only be a path, and nothing is there.
    """
    return os.fspath(as_folder_or_repo(source, name, "the folder of a model"))


def base_revision(ledger: ForgettingLedger, source: str) -> str:
    """What to load from `source`: the commit that the ledger names, if it is that Hub id."""
    base = ledger.base_model
    is_known = base.get("name_or_path") == source and not os.path.isdir(source)
    return (base.get("revision") if is_known else None) or "main"


def _model_class(ledger: ForgettingLedger) -> type[PreTrainedModel]:
    name = ledger.base_model.get("model_class")
    found = getattr(transformers, name, None) or getattr(models, name, None) if name else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(
            f"the ledger in '{ledger.folder}' names {name!r} as class of the base model, which transformers does not "
            "have, nor this package. Load the model yourself and pass it."
        )
    return found
