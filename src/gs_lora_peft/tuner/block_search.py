"""Searches a flattened model for blocks, and checks by shape that they hold a feed-forward."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from .structure import Node, nearest_element

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
