"""The head of a card: what a caller may say for it, checked before anything is sent, and what the base model is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import InvalidInputError

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


def check_card_data(*, dataset: str | None, license: str | None) -> None:
    """Check what the Hub would refuse in the head of a card, or would show as a dead link.

    Args:
        dataset (`str`, *optional*):
            Hub id of a data set.
        license (`str`, *optional*):
            A licence as the Hub calls it. Only the Hub can say whether it knows the name.

    Raises:
        ValueError: If one of them cannot be on the Hub; an [`InvalidInputError`] with its name and value.
    """
    if dataset is not None:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            expected = f"the id of a data set on the Hub, as 'organisation/name' ({error})"
            raise InvalidInputError("dataset", dataset, expected, "Correct it, or leave it out.") from None
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        expected = "a name as the Hub has it, as 'apache-2.0' or 'other'"
        raise InvalidInputError("license", license, expected, "Correct it, or leave it out.")


def is_on_hub(base: Mapping[str, Any]) -> bool:
    """Whether the name of the base model is an id on the Hub; for a local folder the ledger has only the last part."""
    name = base.get("name_or_path") or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name or bool(base.get("revision"))


def model_module(model_class: str) -> str | None:
    """Where a model class is imported from; `None` where it is neither in transformers nor in this package."""
    import transformers

    from .. import models

    return next((module.__name__ for module in (transformers, models) if hasattr(module, model_class)), None)


def pipeline_tag_of(model_class: str) -> str | None:
    """What the Hub calls the task of a class of transformers; `None` where that is not known."""
    from transformers.modelcard import TASK_MAPPING

    mappings: Mapping[str, Any] = TASK_MAPPING
    for tag, mapping in mappings.items():
        if any(model_class in ((names,) if isinstance(names, str) else names) for names in mapping.values()):
            return tag
    return None
