"""Publishing a run, fetching one, and what else is done with repositories."""

from ..sequence.remote import fetch_ledger, fetch_sequence
from .exporting import export_forgotten
from .merging import merge_forgotten
from .publish import push_to_hub
from .repository import StagedRepository, fetch_repository, stage_repository
from .verify import VerifyReport, verify_repository
from .withholding import is_proof, request_proof

__all__ = [
    "StagedRepository",
    "VerifyReport",
    "export_forgotten",
    "fetch_ledger",
    "fetch_repository",
    "fetch_sequence",
    "is_proof",
    "merge_forgotten",
    "push_to_hub",
    "request_proof",
    "stage_repository",
    "verify_repository",
]
