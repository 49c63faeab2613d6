"""The adapter settings that a run was published with, for whoever goes on with it."""

from __future__ import annotations

from ..tuner import GSLoraConfig
from .ledger import ForgettingLedger
from .plain import LedgerError
from .recipe import adapter_settings


def recorded_config(ledger: ForgettingLedger) -> GSLoraConfig | None:
    """The configuration of the last task, as the ledger has it; `None` where it has none.

    Raises:
        LedgerError: what it has is no configuration, or has settings that this version does not know.
    """
    recorded = ledger.tasks[-1].settings.get("config") if ledger.tasks else None
    if recorded is None:
        return None
    known = adapter_settings(GSLoraConfig())
    try:
        if unknown := sorted(recorded.keys() - known.keys()):
            raise ValueError(f"this version does not know {unknown}")
        return GSLoraConfig(**recorded)
    except (AttributeError, TypeError, ValueError) as error:
        raise LedgerError(
            f"the adapter settings of {ledger.tasks[-1].name} in '{ledger.path}' cannot be taken over: {error}. Give "
            "your own: config=GSLoraConfig(...)."
        ) from error
