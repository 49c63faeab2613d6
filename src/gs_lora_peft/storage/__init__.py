"""Files that are whole or absent: atomic writes, staged folders, locks, hashes and safe relative paths."""

from .locks import exclusive_lock
from .reading import (
    StrPath,
    content_problem,
    parse_json,
    read_limited,
    relative_path_problem,
    safe_join,
    sha256_of,
)
from .writing import json_bytes, remove_abandoned, staged_folder, write_bytes_atomic, write_json_atomic

__all__ = [
    "StrPath",
    "content_problem",
    "exclusive_lock",
    "json_bytes",
    "parse_json",
    "read_limited",
    "relative_path_problem",
    "remove_abandoned",
    "safe_join",
    "sha256_of",
    "staged_folder",
    "write_bytes_atomic",
    "write_json_atomic",
]
