"""Which modules a structural target or a pattern of names stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
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


# `target_modules` keywords that are resolved by the structure of the model rather than by module names.
STRUCTURAL_TARGETS = ("ffn", "attention")


class ResolvedNames(set):
    """Full names of modules that answer a keyword.

    Args:
        names (`Iterable[str]`):
            The names.
        keyword (`str`):
            The keyword.
    """

    def __init__(self, names: Iterable[str] = (), keyword: str | None = None):
        super().__init__(names)
        self._keyword = keyword
        self._original = frozenset(self)

    @property
    def keyword(self) -> str | None:
        """The keyword; `None` once names have been added or taken out."""
        return self._keyword if self == self._original else None


class ResolvedPattern(str):
    """The same as a regular expression, where a list of names would match other modules, too.

    Args:
        pattern (`str`):
            The regular expression.
        keyword (`str`):
            The keyword.
    """

    keyword: str | None = None

    def __new__(cls, pattern: str, keyword: str | None = None) -> ResolvedPattern:
        self = super().__new__(cls, pattern)
        self.keyword = keyword
        return self


def keyword_of(target_modules: Any) -> str | None:
    """The keyword that `target_modules` is, or was resolved from; `None` where it is PEFT's own list or pattern."""
    if isinstance(target_modules, ResolvedNames | ResolvedPattern):
        return target_modules.keyword
    return target_modules if isinstance(target_modules, str) and target_modules in STRUCTURAL_TARGETS else None


def resolved(target_modules: Iterable[str] | str, keyword: str) -> ResolvedNames | ResolvedPattern:
    """`target_modules` as PEFT reads them, together with the keyword that they answer."""
    if isinstance(target_modules, str):
        return ResolvedPattern(target_modules, keyword)
    return ResolvedNames(target_modules, keyword)


def exact_targets(paths: list[str], known_paths: Iterable[str]) -> list[str] | str:
    """`target_modules` that hit just these modules: their names, or, where PEFT would read one as the end of another
    module's name, a regular expression.

    Args:
        paths (`list[str]`):
            Full names of the modules.
        known_paths (`Iterable[str]`):
            Full names of all modules of the model, as far as they are known.

    Returns:
        `list[str]` or `str`: "layers.0.fc1" in a list would also hit "decoder.layers.0.fc1".
    """
    suffixes = tuple(f".{path}" for path in paths)
    if any(other.endswith(suffixes) for other in set(known_paths) - set(paths)):
        return "|".join(map(re.escape, paths))
    return paths
