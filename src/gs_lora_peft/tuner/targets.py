"""Which modules a target names: a structural word, a pattern, or the blocks found in a flattened model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import InvalidInputError
from .structure import Node, nearest_element

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


Shape = tuple[int, int]


@dataclass(slots=True)
class Block:
    """A block, as indices into the list of nodes.

    Args:
        index (`int`):
            The block.
        linears (`list[int]`):
            Its feed-forward Linears.
        joint (`int`):
            The innermost module that holds this feed-forward and a mixer: the block itself or part of it; or, if
            feed-forward and mixer are elements of one list, the module with that list.
    """

    index: int
    linears: list[int]
    joint: int


def search_blocks(nodes: list[Node]) -> list[Block]:
    """Finds the blocks, in module order.

    Feed-forwards are recognised by name first. Only in a model without any, Linears of the right shape beside a mixer
    count. So a block with a named MLP never gets other Linears of the same shape.

    Args:
        nodes (`list[Node]`):
            The nodes that [`read_structure`] returned.

    Returns:
        `list[Block]`: The blocks; empty if there are none.
    """
    return _search(nodes, named=True) or _search(nodes, named=False)


def _search(nodes: list[Node], named: bool) -> list[Block]:
    feeds = [node.shape is not None and node.region == ("ffn" if named else "") for node in nodes]
    mixes = [node.region in ("attention", "mixer") and node.region_root == i for i, node in enumerate(nodes)]
    joint_below = [False] * len(nodes)
    joints = []
    for i in range(len(nodes) - 1, -1, -1):
        is_joint = feeds[i] and mixes[i]
        if is_joint and not joint_below[i]:
            joints.append(i)
        up = nodes[i].parent
        if up >= 0:
            feeds[up] |= feeds[i]
            mixes[up] |= mixes[i]
            joint_below[up] |= is_joint

    listed: list[tuple[int, int]] = []  # (block, joint)
    unlisted: list[tuple[int, int]] = []
    for joint in reversed(joints):
        for block in _raise_to_blocks(nodes, joint, feeds, mixes, named):
            (listed if nodes[block].is_element else unlisted).append((block, joint))
    # Attention and MLP outside any list are a head (SigLIP's pooling), unless the whole model is written that way.
    candidates = _innermost(nodes, _separate(nodes, listed)) or unlisted
    blocks = {block: Block(block, _ffn_linears(nodes, block, named), joint) for block, joint in candidates}
    return [blocks[i] for i in sorted(blocks) if blocks[i].linears]


def _raise_to_blocks(nodes: list[Node], joint: int, feeds: list[bool], mixes: list[bool], named: bool) -> list[int]:
    """Returns the blocks of one innermost module that holds a mixer and a feed-forward."""
    elements = [
        i
        for i in range(joint + 1, nodes[joint].end)
        if nodes[i].is_element and joint in (nodes[i].parent, nodes[nodes[i].parent].parent)
    ]
    feeding = [i for i in elements if feeds[i] and len(_ffn_linears(nodes, i, named)) > 1]
    mixing = [i for i in elements if mixes[i]]
    # A list of layers that only mix (with fused experts, say) and one MLP beside the list: the MLP is a head.
    layers = (i for i in range(joint + 1, nodes[joint].end) if nodes[i].is_element and nodes[i].parent != joint)
    if not feeding and any(mixes[i] and (nodes[i].region_root != i or not nodes[joint].is_element) for i in layers):
        return []
    element = nearest_element(nodes, joint)
    # One feed-forward after several attentions is a decoder's block; several of each in one list stand side by side.
    side_by_side = min(len(feeding), len(mixing)) > 1 and (nodes[joint].is_container or element is None)
    if side_by_side or (element is None and feeding and (nodes[joint].is_container or joint == 0)):
        return feeding
    return [joint if element is None else element]


def _separate(nodes: list[Node], candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Splits an element that holds numbered blocks as attributes (`self.block1`, `self.block2`, …)."""
    series = Counter((block, nodes[joint].leaf.rstrip("0123456789")) for block, joint in candidates)
    separate = {block for (block, _), count in series.items() if count > 1}
    return [(joint if block in separate else block, joint) for block, joint in candidates]


def _innermost(nodes: list[Node], candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drops elements that contain other blocks, such as a tower that stands for its pooling head."""
    indices = sorted({block for block, _ in candidates})
    outer = {a for a, b in pairwise(indices) if b < nodes[a].end}
    return [(block, joint) for block, joint in candidates if block not in outer]


def _ffn_linears(nodes: list[Node], block: int, named: bool) -> list[int]:
    """Returns the feed-forward Linears of a block whose shapes lead from a width d and back to it."""
    inside = [i for i in range(block, nodes[block].end) if nodes[i].shape is not None]
    unnamed = [i for i in inside if nodes[i].region == ""]
    if not named:
        return _matched(nodes, unnamed)
    units: dict[int, list[int]] = {}
    for i in inside:
        if nodes[i].region == "ffn":
            units.setdefault(nodes[i].region_root, []).append(i)
    confirmed, single = [], []
    for unit in units.values():
        if len(unit) == 1:
            single += unit
        else:
            # The width may double or halve on the way (MViT's stages; LightGlue's MLP of two concatenated inputs).
            confirmed += _matched(nodes, unit) or _matched(nodes, unit, widths=(1, 2))
    # BERT's `intermediate.dense` is recognised by name, its partner `output.dense` is not.
    for i in sorted(set(single) - set(_matched(nodes, single))):
        partners = (j for j in unnamed if j > i and j not in single and _leads_back(nodes[i].shape, nodes[j].shape))
        single += [j for j in (next(partners, None),) if j is not None]
    return sorted(confirmed + _matched(nodes, single))


def _matched(nodes: list[Node], linears: list[int], widths: tuple[int, ...] = (1,)) -> list[int]:
    """Returns the Linears that lead d → h, or h → d, and have a counterpart among the others."""
    shapes = Counter(nodes[i].shape for i in linears)

    def has_counterpart(shape: Shape | None) -> bool:
        # If h = d, a Linear is its own counterpart by shape, so that there must be a second one.
        return any(
            count > (other == shape)
            for other, count in shapes.items()
            if _leads_back(shape, other, widths) or _leads_back(other, shape, widths)
        )

    return [i for i in linears if has_counterpart(nodes[i].shape)]


def _leads_back(up: Shape | None, down: Shape | None, widths: tuple[int, ...] = (1,)) -> bool:
    """Whether d → h (or packed d → 2h) and h → d follow each other; d may change by a factor in `widths`."""
    if up is None or down is None or up[1] not in (down[0], 2 * down[0]):
        return False
    return any(up[0] == k * down[1] or k * up[0] == down[1] for k in widths)
