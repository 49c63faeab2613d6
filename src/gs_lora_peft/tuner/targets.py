"""What a structural target (`"ffn"`, `"attention"`) stands for in one model, in a form that all of PEFT reads.

PEFT copies `target_modules` from one configuration to another (`convert_to_lora`), joins those of several adapters
(`add_weighted_adapter`) and writes them to files. So a configuration that belongs to a model holds the names of its
modules. That they answer a keyword is remembered by the value itself: it travels with copies of the value, and another
value that takes its place is read as what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# `target_modules` keywords that are resolved by the structure of the model rather than by module names.
STRUCTURAL_TARGETS = ("ffn", "attention")


class ResolvedNames(set):
    """Full names of modules that answer a keyword.

    Args:
        names (`Iterable[str]`): The names.
        keyword (`str`): The keyword.
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
        pattern (`str`): The regular expression.
        keyword (`str`): The keyword.
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
        paths (`list[str]`): Full names of the modules.
        known_paths (`Iterable[str]`): Full names of all modules of the model, as far as they are known.

    Returns:
        `list[str]` or `str`: "layers.0.fc1" in a list would also hit "decoder.layers.0.fc1".
    """
    suffixes = tuple(f".{path}" for path in paths)
    if any(other.endswith(suffixes) for other in set(known_paths) - set(paths)):
        return "|".join(map(re.escape, paths))
    return paths
