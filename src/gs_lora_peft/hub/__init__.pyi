from .card_metadata import is_on_hub as is_on_hub
from .client.calls import checked_repo_id as checked_repo_id, writing_api as writing_api
from .client.commit import commit_folder as commit_folder, open_repository as open_repository
from .client.download import find_source as find_source
from .composite import write_composite as write_composite
from .export import export_forgotten as export_forgotten, merge_forgotten as merge_forgotten
from .fetch import (
    fetch_ledger as fetch_ledger,
    fetch_repository as fetch_repository,
    fetch_run as fetch_run,
    fetch_to_continue as fetch_to_continue,
    folder_or_fetched as folder_or_fetched,
    resolve_run_folder as resolve_run_folder,
)
from .load import (
    base_source as base_source,
    check_bare as check_bare,
    load_base_model as load_base_model,
    load_forgotten as load_forgotten,
)
from .publish import (
    StagedRepository as StagedRepository,
    push_to_hub as push_to_hub,
    stage_repository as stage_repository,
)
from .run_figures import draw_figures as draw_figures
from .verify import VerifyReport as VerifyReport, verify_repository as verify_repository
from .withhold import is_proof as is_proof, request_proof as request_proof

__all__ = [
    "StagedRepository",
    "VerifyReport",
    "base_source",
    "check_bare",
    "checked_repo_id",
    "commit_folder",
    "draw_figures",
    "export_forgotten",
    "fetch_ledger",
    "fetch_repository",
    "fetch_run",
    "fetch_to_continue",
    "find_source",
    "folder_or_fetched",
    "is_on_hub",
    "is_proof",
    "load_base_model",
    "load_forgotten",
    "merge_forgotten",
    "open_repository",
    "push_to_hub",
    "request_proof",
    "resolve_run_folder",
    "stage_repository",
    "verify_repository",
    "write_composite",
    "writing_api",
]
