"""Names of models that may leave the machine."""

from __future__ import annotations

import os
import re

_CACHED_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]*\Z")


def public_name(name: str) -> tuple[str | None, str | None]:
    """The part of a model's `name_or_path` that may be published, and the revision if the path tells it.

    A Hub id stays as it is. Of a folder only the last part remains, so that nothing of the machine's paths gets out.
    """
    cached = _CACHED_SNAPSHOT.search(name)
    if cached:
        return cached[1].replace("--", "/"), cached[2]
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..", "~")]
    # Only `name` and `organisation/name` can be Hub ids; everything else, and every folder there is, is a path.
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) and not os.path.isdir(name)
    return (name if is_hub_id else parts[-1] if parts else None), None
