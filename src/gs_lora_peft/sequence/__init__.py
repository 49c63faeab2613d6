"""Requests, the ledger, and the run over many tasks."""

from .fingerprint import model_identity, weights_fingerprint
from .forgetter import ContinualForgetter
from .ledger import ForgettingLedger
from .loading import load_forgotten
from .parsing import parse_requests
from .request import ForgetRequest, LedgerError, TaskEntry
from .table import format_table

__all__ = [
    "ContinualForgetter",
    "ForgetRequest",
    "ForgettingLedger",
    "LedgerError",
    "TaskEntry",
    "format_table",
    "load_forgotten",
    "model_identity",
    "parse_requests",
    "weights_fingerprint",
]
