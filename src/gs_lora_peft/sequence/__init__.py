"""Requests, the ledger, and the run over many tasks."""

from .entry import TaskEntry
from .fingerprint import model_identity, weights_fingerprint
from .forgetter import ContinualForgetter
from .ledger import ForgettingLedger
from .loading import load_forgotten
from .parsing import parse_requests
from .plain import LedgerError
from .request import ForgetRequest
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
