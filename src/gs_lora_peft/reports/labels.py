"""Module paths, made short enough for a picture or a table."""

from __future__ import annotations

from collections.abc import Sequence


def shortened_names(names: Sequence[str], longest: int = 40) -> tuple[str, list[str]]:
    """Split module paths into their common start and the rest of each.

    Args:
        names (`Sequence[str]`):
            Different dotted paths, e.g. `["vit.layers.0", "vit.layers.1"]`.
        longest (`int`, *optional*, defaults to 40):
            If a rest has more characters, the long parts of all of them are shortened in their middle, as far as they
            stay different.

    Returns:
        `tuple[str, list[str]]`: The start and the rests, e.g. `("vit.layers", ["0", "1"])`.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    labels = [".".join(p[shared:]) for p in parts]
    for length in range(longest, 2, -1):
        if max(map(len, labels), default=0) <= longest:
            break
        cut = [".".join(_cut(part, length) for part in p[shared:]) for p in parts]
        if len(set(cut)) < len(cut):
            break
        labels = cut
    return ".".join(parts[0][:shared]) if parts else "", labels


def _cut(text: str, length: int) -> str:
    """Shorten a text in its middle: `"stage_12"` to a length of 6 is `"sta…12"`."""
    tail = length // 3 or 1
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"
