"""The file of a ledger: strict JSON that carries a digest of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import short
from ..storage import json_bytes, parse_json, read_limited
from .plain import LedgerError

SCHEMA_VERSION = 1
MAX_LEDGER_BYTES = 64 * 2**20
FIX = "Fetch or restore a clean copy of the folder (the ledger is not meant to be edited)."


def read_ledger_file(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a ledger's file, without schema version and digest, and the SHA-256 of the file.

    Raises:
        LedgerError: The file does not exist, is not a ledger, has a newer schema, or is damaged or edited.
    """
    try:
        raw = read_limited(path, MAX_LEDGER_BYTES)
        data = parse_json(raw)
    except FileNotFoundError:
        raise LedgerError(f"'{path}' does not exist; expected a folder with a ledger. Check the path.") from None
    except OSError as error:
        raise LedgerError(f"'{path}' cannot be read ({error.strerror or error}). Fix the cause first.") from error
    except ValueError as error:
        raise LedgerError(f"'{path}' is not a ledger: {error}. {FIX}") from None
    if not isinstance(data, dict):
        raise LedgerError(f"'{path}' holds {short(data)}; expected a JSON object. {FIX}")
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise LedgerError(f"schema_version in '{path}' is {short(version)}; expected {SCHEMA_VERSION}. {FIX}")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"schema_version in '{path}' is {version}; this package reads up to {SCHEMA_VERSION}. Upgrade the "
            "package: pip install --upgrade gs-lora-peft"
        )
    written = data.pop("digest", None)
    try:
        genuine = written == _digest(data)
    except (ValueError, RecursionError):  # numbers too large for a float, nesting too deep
        genuine = False
    if not genuine:
        raise LedgerError(
            f"'{path}' is not accepted: the content does not match its digest {short(written)}: it was edited or "
            f"damaged. {FIX}"
        )
    del data["schema_version"]
    return data, hashlib.sha256(raw).hexdigest()


def with_digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ledger as its file has it: the schema version first, the digest last."""
    content = {"schema_version": SCHEMA_VERSION, **data}
    return {**content, "digest": _digest(content)}


def ledger_bytes(content: Mapping[str, Any]) -> bytes:
    """The file of a ledger; LedgerError if it would be too large to be read back."""
    raw = json_bytes(content)
    if len(raw) > MAX_LEDGER_BYTES:
        raise LedgerError(
            f"the ledger would have {len(raw)} bytes; at most {MAX_LEDGER_BYTES} are read back. Record less."
        )
    return raw


def _digest(data: Mapping[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
