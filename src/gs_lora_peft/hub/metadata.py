"""What a caller may say for the head of a card, checked before anything is made or sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)


def check_card_data(*, dataset: str | None, license: str | None) -> None:
    """Checks what the Hub would refuse in the head of a card, or would show as a link to nothing.

    Args:
        dataset (`str`, *optional*): Hub id of a data set.
        license (`str`, *optional*): a licence as the Hub calls it. Whether it knows the name is for the Hub to say.

    Raises:
        ValueError: one of them cannot be what it is said to be.
    """
    if dataset is not None:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            raise ValueError(
                f"dataset is {dataset!r}; expected the id of a data set on the Hub, as 'organisation/name' ({error}). "
                "Correct it, or leave it out."
            ) from None
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        raise ValueError(
            f"license is {license!r}; expected a name as the Hub has it, as 'apache-2.0' or 'other'. Correct it, or "
            "leave it out."
        )


def is_on_hub(base: Mapping[str, Any]) -> bool:
    """Whether the name of the base model is an id on the Hub: of a local folder the ledger has the last part alone."""
    name = base.get("name_or_path") or ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name or bool(base.get("revision"))
