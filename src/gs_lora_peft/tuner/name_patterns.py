"""Regular expressions in configurations that others have written: none of them may search for ever.

Python cannot stop a search, and `(a+)+$` takes longer than the world is old on a name of sixty letters. So what others
have written is looked at before it is used.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import InvalidInputError

_LITERAL = r"(?:\\[^\w\s]|\\ |[^\\^$*+?{}\[\]|()\x00-\x1f])+"
_NAMES = rf"{_LITERAL}(?:\|{_LITERAL})*"
# What this package writes: names, several with `|` between them, perhaps anchored and in one group.
_EXPLICIT = re.compile(rf"\^?(?:\(\?:{_NAMES}\)|{_NAMES})\$?")
_MOST_CHOICES, _MOST_OPTIONS = 4, 2


def compiled_pattern(pattern: Any, name: str) -> re.Pattern[str]:
    """A regular expression, compiled.

    Raises:
        InvalidInputError: It is not one; `name` is what holds it.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        fix = r"Escape special characters, e.g. r'encoder\.layers\.[0-5]$'."
        raise InvalidInputError(name, pattern, f"a regular expression ({error})", fix) from error


def names_modules(pattern: Any) -> bool:
    """Whether a pattern does no more than name modules, so that comparing takes a time that grows with its length."""
    return isinstance(pattern, str) and _is_explicit(pattern)


def is_quick(pattern: str) -> bool:
    """Whether a search with a pattern ends soon on any name of a module.

    Allowed are four repeats of single characters and groups together, and two optional characters, but no repeated
    group and no reference back: enough for patterns such as `.*layers\\.(0|1|2)$`.
    """
    bare = re.sub(r"\\[^\d]", "x", pattern)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    if re.search(r"\\\d|\(\?P=|\)[*+?{]", bare):
        return False
    # A look ahead or behind is searched once, whatever follows.
    choices = len(re.findall(r"[*+{]|\((?!\?[!=<])", bare))
    return choices <= _MOST_CHOICES and len(re.findall(r"(?<!\()\?", bare)) <= _MOST_OPTIONS


def _is_explicit(pattern: str) -> bool:
    # No two parts of this grammar begin alike, so that it never searches long itself.
    return _EXPLICIT.fullmatch(pattern) is not None
