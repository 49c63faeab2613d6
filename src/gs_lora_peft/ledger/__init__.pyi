from .entry import KNOWN_BY as KNOWN_BY
from .entry import TaskEntry as TaskEntry
from .entry import curve_names as curve_names
from .entry import listed_files as listed_files
from .entry import why_none as why_none
from .files import KEY_NAME as KEY_NAME
from .files import LEDGER_NAME as LEDGER_NAME
from .files import LOCK_NAME as LOCK_NAME
from .files import LOGS_FOLDER as LOGS_FOLDER
from .files import MAX_CONFIG_BYTES as MAX_CONFIG_BYTES
from .files import MAX_LEDGER_BYTES as MAX_LEDGER_BYTES
from .files import TASKS_FOLDER as TASKS_FOLDER
from .files import TRAINING_CONFIG as TRAINING_CONFIG
from .files import WORK_FOLDER as WORK_FOLDER
from .files import ledger_bytes as ledger_bytes
from .files import refuse_linked_parts as refuse_linked_parts
from .files import task_folder as task_folder
from .ledger import ForgettingLedger as ForgettingLedger
from .outcome import NOT_FORGOTTEN_STATUS as NOT_FORGOTTEN_STATUS
from .outcome import all_forgotten as all_forgotten
from .outcome import exit_status as exit_status
from .outcome import measure_of_entry as measure_of_entry
from .outcome import outcome_of_task as outcome_of_task
from .outcome import target_score as target_score
from .outcome import task_states as task_states
from .outcome import verdict as verdict
from .request import ForgetRequest as ForgetRequest
from .request import parse_classes as parse_classes
from .request import parse_requests as parse_requests
from .request import parse_utc as parse_utc
from .request import utc_now as utc_now
from .schema import AlreadyForgottenError as AlreadyForgottenError
from .schema import DivergedRunError as DivergedRunError
from .schema import FilesDifferError as FilesDifferError
from .schema import InvalidLedgerError as InvalidLedgerError
from .schema import LaterTasksError as LaterTasksError
from .schema import LedgerError as LedgerError
from .schema import LedgerFileError as LedgerFileError
from .schema import LinkedRunError as LinkedRunError
from .schema import OtherBaseModelError as OtherBaseModelError
from .schema import RequestOrderError as RequestOrderError
from .schema import RunLockedError as RunLockedError
from .schema import UnfinishedRequestError as UnfinishedRequestError
from .schema import UnusableAdapterError as UnusableAdapterError
from .schema import WithheldClassesError as WithheldClassesError
from .schema import as_ledger_error as as_ledger_error
from .schema import first_digits as first_digits
from .schema import plain_json as plain_json
from .summary import SCORES as SCORES
from .summary import active_groups as active_groups
from .summary import base_score as base_score
from .summary import class_list as class_list
from .summary import doubts as doubts
from .summary import format_table as format_table
from .summary import measure_of_tasks as measure_of_tasks
from .summary import narrow_table as narrow_table
from .summary import not_forgotten as not_forgotten
from .summary import score as score
from .summary import score_columns as score_columns
from .summary import size as size
from .summary import warn_after as warn_after
from .summary import warn_before as warn_before
from .summary import warn_where_it_goes as warn_where_it_goes

__all__ = [
    "KEY_NAME",
    "KNOWN_BY",
    "LEDGER_NAME",
    "LOCK_NAME",
    "LOGS_FOLDER",
    "MAX_CONFIG_BYTES",
    "MAX_LEDGER_BYTES",
    "NOT_FORGOTTEN_STATUS",
    "SCORES",
    "TASKS_FOLDER",
    "TRAINING_CONFIG",
    "WORK_FOLDER",
    "AlreadyForgottenError",
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
    "RequestOrderError",
    "RunLockedError",
    "TaskEntry",
    "UnfinishedRequestError",
    "UnusableAdapterError",
    "WithheldClassesError",
    "active_groups",
    "all_forgotten",
    "as_ledger_error",
    "base_score",
    "class_list",
    "curve_names",
    "doubts",
    "exit_status",
    "first_digits",
    "format_table",
    "ledger_bytes",
    "listed_files",
    "measure_of_entry",
    "measure_of_tasks",
    "narrow_table",
    "not_forgotten",
    "outcome_of_task",
    "parse_classes",
    "parse_requests",
    "parse_utc",
    "plain_json",
    "refuse_linked_parts",
    "score",
    "score_columns",
    "size",
    "target_score",
    "task_folder",
    "task_states",
    "utc_now",
    "verdict",
    "warn_after",
    "warn_before",
    "warn_where_it_goes",
    "why_none",
]
