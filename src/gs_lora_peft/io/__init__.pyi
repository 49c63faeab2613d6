from .reading import StrPath as StrPath
from .reading import as_path as as_path
from .reading import code_span as code_span
from .reading import file_mismatch as file_mismatch
from .reading import leads_out as leads_out
from .reading import parse_json as parse_json
from .reading import public_name as public_name
from .reading import read_limited as read_limited
from .reading import refuse_links as refuse_links
from .reading import relative_path_problem as relative_path_problem
from .reading import remove_inside as remove_inside
from .reading import safe_join as safe_join
from .reading import sha256_of as sha256_of
from .reading import visible as visible
from .writing import exclusive_lock as exclusive_lock
from .writing import explained as explained
from .writing import json_bytes as json_bytes
from .writing import remove_abandoned as remove_abandoned
from .writing import staged_folder as staged_folder
from .writing import write_bytes_atomic as write_bytes_atomic
from .writing import write_json_atomic as write_json_atomic

__all__ = [
    "StrPath",
    "as_path",
    "code_span",
    "exclusive_lock",
    "explained",
    "file_mismatch",
    "json_bytes",
    "leads_out",
    "parse_json",
    "public_name",
    "read_limited",
    "refuse_links",
    "relative_path_problem",
    "remove_abandoned",
    "remove_inside",
    "safe_join",
    "sha256_of",
    "staged_folder",
    "visible",
    "write_bytes_atomic",
    "write_json_atomic",
]
