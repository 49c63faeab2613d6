"""Requests, the ledger, and the run over many tasks."""

from .fingerprint import model_identity, weights_fingerprint
from .forgetter import ContinualForgetter
from .ledger import ForgettingLedger
from .loading import load_forgotten
from .request import ForgetRequest, LedgerError, TaskEntry

__all__ = [
    "ContinualForgetter",
    "ForgetRequest",
    "ForgettingLedger",
    "LedgerError",
    "TaskEntry",
    "load_forgotten",
    "model_identity",
    "weights_fingerprint",
]
