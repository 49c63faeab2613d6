"""Loading the model on which a run rests."""

from __future__ import annotations

import os
from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from .. import models
from ..errors import InvalidInputError
from ..sequence import ForgettingLedger
from ..storage import StrPath
from ..storage.hub_calls import as_folder_or_repo
from ..storage.hub_sources import find_source

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
