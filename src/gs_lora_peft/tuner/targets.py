"""Values of `target_modules`: keywords, lists of names and patterns, and which modules they hit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..errors import InvalidInputError

# Keywords of `target_modules`. The structure of the model decides what they hit, not the names of modules.
STRUCTURAL_TARGETS = ("ffn", "attention")

_LITERAL = r"(?:\\[^\w\s]|\\ |[^\\^$*+?{}\[\]|()\x00-\x1f])+"

_NAMES = rf"{_LITERAL}(?:\|{_LITERAL})*"

# The patterns that this package writes: names with `|` between them, with or without anchors and one group.
_EXPLICIT = re.compile(rf"\^?(?:\(\?:{_NAMES}\)|{_NAMES})\$?")

# The most repeats and groups, and the most optional characters, of a pattern that is quick to search with.
_MAX_CHOICES, _MAX_OPTIONS = 4, 2


class ResolvedNames(set):
    """Full names of the modules that a keyword stands for in one model.

    Args:
        names (`Iterable[str]`, *optional*, defaults to `()`):
            The names.
        keyword (`str`, *optional*):
            The keyword.
    """

    def __init__(self, names: Iterable[str] = (), keyword: str | None = None):
        super().__init__(names)
        self._keyword = keyword
        self._original = frozenset(self)

    @property
    def keyword(self) -> str | None:
        """The keyword; `None` after names have been added or removed."""
        return self._keyword if self == self._original else None


class ResolvedPattern(str):
    """Like [`ResolvedNames`], as a regular expression, for models in which the names would match other modules too.

    Args:
        pattern (`str`):
            The regular expression.
        keyword (`str`, *optional*):
            The keyword.
    """

    keyword: str | None = None

    def __new__(cls, pattern: str, keyword: str | None = None) -> ResolvedPattern:
        self = super().__new__(cls, pattern)
        self.keyword = keyword
        return self


def resolved(target_modules: Iterable[str] | str, keyword: str) -> ResolvedNames | ResolvedPattern:
    """Returns `target_modules` as PEFT reads them, with the keyword that they come from.

    Args:
        target_modules (`Iterable[str]` or `str`):
            Names, or a regular expression.
        keyword (`str`):
            The keyword.
    """
    if isinstance(target_modules, str):
        return ResolvedPattern(target_modules, keyword)
    return ResolvedNames(target_modules, keyword)


def keyword_of(target_modules: Any) -> str | None:
    """Returns the keyword that `target_modules` is or comes from, or `None` for a list or pattern as PEFT reads it."""
    if isinstance(target_modules, ResolvedNames | ResolvedPattern):
        return target_modules.keyword
    return target_modules if isinstance(target_modules, str) and target_modules in STRUCTURAL_TARGETS else None


def exact_targets(paths: list[str], known_paths: Iterable[str]) -> list[str] | str:
    """Returns `target_modules` that hit these modules and no others.

    Args:
        paths (`list[str]`):
            Full names of the modules.
        known_paths (`Iterable[str]`):
            Full names of all known modules of the model.

    Returns:
        `list[str]` or `str`: The names; or a regular expression, if a name is also the end of another module's name:
        in a list, `"layers.0.fc1"` would also hit `"decoder.layers.0.fc1"`.
    """
    suffixes = tuple(f".{path}" for path in paths)
    if any(other.endswith(suffixes) for other in set(known_paths) - set(paths)):
        return "|".join(map(re.escape, paths))
    return paths


def compiled_pattern(pattern: Any, name: str) -> re.Pattern[str]:
    """Compiles a regular expression.

    Args:
        pattern (`str`):
            The regular expression.
        name (`str`):
            Name of the argument, for the error.

    Raises:
        InvalidInputError: If the pattern is not a regular expression.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        fix = r"Escape special characters, e.g. r'encoder\.layers\.[0-5]$'."
        raise InvalidInputError(name, pattern, f"a regular expression ({error})", fix) from error


def names_modules(pattern: Any) -> bool:
    """Whether a pattern only names modules, so that the time to match it is linear in its length."""
    return isinstance(pattern, str) and _is_explicit(pattern)


def _is_explicit(pattern: str) -> bool:
    # No two alternatives of this grammar begin with the same character, so that the match itself is quick.
    return _EXPLICIT.fullmatch(pattern) is not None


def is_quick(pattern: str) -> bool:
    r"""Whether a search with a pattern ends soon on any name of a module.

    A quick pattern has at most four repeats of single characters and groups together, and at most two optional
    characters. It has no repeated group and no backreference. `.*layers\.(0|1|2)$` is quick.

    Args:
        pattern (`str`):
            A regular expression.
    """
    # One character in place of each escape and each set of characters.
    reduced = re.sub(r"\\[^\d]", "x", pattern)
    reduced = re.sub(r"\[\^?\]?[^\]]*\]", "x", reduced)
    if re.search(r"\\\d|\(\?P=|\)[*+?{]", reduced):
        return False
    # A lookahead or lookbehind is searched once, whatever follows.
    choices = len(re.findall(r"[*+{]|\((?!\?[!=<])", reduced))
    return choices <= _MAX_CHOICES and len(re.findall(r"(?<!\()\?", reduced)) <= _MAX_OPTIONS
