"""Files that are whole or absent: atomic writes, staged folders, locks, hashes and safe relative paths.

The way of such files to the Hub is in `hub_calls` and `hub_commit`, which are imported where they are needed.
"""

from .links import leads_out, refuse_links, remove_inside
from .locks import exclusive_lock
from .names import public_name
from .paths import as_path
from .reading import (
    StrPath,
    content_problem,
    parse_json,
    read_limited,
    relative_path_problem,
    safe_join,
    sha256_of,
)
from .text import code_span, visible
from .writing import json_bytes, remove_abandoned, staged_folder, write_bytes_atomic, write_json_atomic

__all__ = [
    "StrPath",
    "as_path",
    "code_span",
    "content_problem",
    "exclusive_lock",
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
