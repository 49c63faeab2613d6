"""The adapter settings that a run was published with, to go on with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import short
from ..tuner import GSLoraConfig
from ..tuner.name_patterns import is_quick
from .ledger import ForgettingLedger
from .plain import InvalidLedgerError
from .recipe import adapter_settings


def recorded_config(ledger: ForgettingLedger) -> GSLoraConfig | None:
    """The configuration of the last task, as the ledger has it; `None` where it has none.

    Raises:
        InvalidLedgerError: The record is not a configuration, has settings that this version does not know, or has
            patterns whose search may never end.
    """
    recorded = ledger.tasks[-1].settings.get("config") if ledger.tasks else None
    if recorded is None:
        return None
    known = adapter_settings(GSLoraConfig())
    try:
        if unknown := sorted(recorded.keys() - known.keys()):
            raise ValueError(f"this version does not know {unknown}")
        for name, pattern in _patterns(recorded):
            if not is_quick(pattern):
                raise ValueError(f"a search with {name}={short(pattern)} may never end")
        return GSLoraConfig(**recorded)
    except (AttributeError, TypeError, ValueError) as error:
        fix = f"They cannot be taken over from '{ledger.path}': {error}. Give your own: config=GSLoraConfig(...)."
        name = f"{ledger.tasks[-1].name}.settings.config"
        raise InvalidLedgerError(name, recorded, "adapter settings of this version", fix) from error


def _patterns(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions among adapter settings."""
    for name in ("target_modules", "exclude_modules", "block_pattern", "exclude_blocks"):
        if isinstance(settings.get(name), str):
            yield name, settings[name]
    for name in ("rank_pattern", "alpha_pattern"):
        yield from ((name, key) for key in settings.get(name) or ())
