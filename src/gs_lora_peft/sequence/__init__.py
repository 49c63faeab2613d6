"""Requests, the ledger, and the run over many tasks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .comparing import OtherSettingsError
from .entry import TaskEntry
from .ledger import ForgettingLedger
from .outcome import exit_status, task_states
from .parsing import parse_classes, parse_requests
from .plain import (
    AlreadyForgottenError,
    DivergedRunError,
    FilesDifferError,
    InvalidLedgerError,
    LaterTasksError,
    LedgerError,
    LedgerFileError,
    LinkedRunError,
    OtherBaseModelError,
    RequestOrderError,
    RunLockedError,
    UnfinishedRequestError,
    UnusableAdapterError,
    WithheldClassesError,
)
from .request import ForgetRequest
from .table import format_table

if TYPE_CHECKING:
    from .fingerprint import model_identity, weights_fingerprint
    from .forgetter import ContinualForgetter
    from .loading import load_forgotten

__all__ = [
    "AlreadyForgottenError",
    "ContinualForgetter",
    "DivergedRunError",
    "FilesDifferError",
    "ForgetRequest",
    "ForgettingLedger",
    "InvalidLedgerError",
    "LaterTasksError",
    "LedgerError",
    "LedgerFileError",
    "LinkedRunError",
    "OtherBaseModelError",
    "OtherSettingsError",
    "RequestOrderError",
    "RunLockedError",
    "TaskEntry",
    "UnfinishedRequestError",
    "UnusableAdapterError",
    "WithheldClassesError",
    "exit_status",
    "format_table",
    "load_forgotten",
    "model_identity",
    "parse_classes",
    "parse_requests",
    "task_states",
    "weights_fingerprint",
]

# A ledger is read without torch, which takes seconds to import.
_LAZY = {
    "ContinualForgetter": "forgetter",
    "load_forgotten": "loading",
    "model_identity": "fingerprint",
    "weights_fingerprint": "fingerprint",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
