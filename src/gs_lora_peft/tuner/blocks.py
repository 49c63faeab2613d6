"""Finds the feed-forward Linears of a model and the Transformer blocks they belong to, in any architecture.

A block is what one forgetting task keeps or drops as a whole. It is found by structure: the innermost element of a
`ModuleList`, `Sequential` or `ModuleDict` that holds a token mixer (attention, mostly) and a feed-forward. Three layouts
need more than that:

- attention and feed-forward alternate as elements of one list (LeViT): each feed-forward element is a block;
- the two are elements of a small list inside a block (T5, lucidrains' ViT): the block is what holds that list;
- no list anywhere (`self.block1 = Block(...)`): the innermost module that holds both is the block.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .structure import Node, nearest_element, read_structure


class NoFFNFoundError(ValueError):
    """No feed-forward Linears could be found. The message says why, and what to set instead."""


def find_ffn_blocks(
    model: nn.Module, block_pattern: str | None = None, exclude_blocks: str | None = None
) -> dict[str, list[str]]:
    r"""Finds the feed-forward Linears of every Transformer block.

    Attention, position biases, routers, adapters, stage transitions and heads are never among them. What is found is
    confirmed by shape: d → h → d, gate and up d → h with down h → d, or packed d → 2h with h → d.

    Args:
        model (`nn.Module`):
            Any model, on any device (meta included). Linears are `nn.Linear`, GPT-2's `Conv1D` and quantised ones. PEFT
            wrappers are looked through, so that a wrapped model gives the same paths as the model underneath.
        block_pattern (`str`, *optional*):
            Regular expression, searched (`re.search`) in block paths: only blocks that match are returned, e.g.
            `"vision_model"`, or `r"layers\.(8|9|10|11)$"`.
        exclude_blocks (`str`, *optional*):
            Regular expression, searched in block paths: blocks that match are left out. Wins over `block_pattern`.

    Returns:
        `dict[str, list[str]]`: Block path → paths of its feed-forward Linears, both in module order.

    Raises:
        NoFFNFoundError: If the model has none that can be found; the message says why and what to set.
        ValueError: If a pattern is no regular expression, or if the two leave no block.

    Example:
        ```python
        >>> find_ffn_blocks(ViTModel(ViTConfig(num_hidden_layers=1)))
        {'layers.0': ['layers.0.mlp.fc1', 'layers.0.mlp.fc2']}
        ```
    """
    nodes = read_structure(model)
    blocks = _find_blocks(nodes)
    if not blocks:
        raise NoFFNFoundError(_explain(model, nodes))
    fused = [node.path for node in nodes if node.holds_fused_experts]
    if fused:
        warnings.warn(
            f"{type(model).__name__} also has experts that are fused into 3-D parameters ({_some(fused)}). They are no Linear "
            "layers and are not adapted; what they know is not forgotten through them.",
            stacklevel=2,
        )
    found = {nodes[b.index].path: [nodes[i].path for i in b.linears] for b in blocks}
    return _select(found, block_pattern, exclude_blocks)


def find_attention_blocks(
    model: nn.Module, block_pattern: str | None = None, exclude_blocks: str | None = None
) -> dict[str, list[str]]:
    """Finds the attention projections (q, k, v or fused qkv, and output) of every Transformer block.

    The blocks are those of [`find_ffn_blocks`]. Where attention is a list element of its own (LeViT) that element is its
    block, and where a model has no feed-forward Linears (fused experts) the element around the attention is.

    Args:
        model (`nn.Module`): As for [`find_ffn_blocks`].
        block_pattern (`str`, *optional*): As for [`find_ffn_blocks`].
        exclude_blocks (`str`, *optional*): As for [`find_ffn_blocks`].

    Returns:
        `dict[str, list[str]]`: Block path → paths of its attention projections, both in module order.

    Raises:
        ValueError: If there is no attention with Linear projections, if it is an `nn.MultiheadAttention` (whose q, k and
            v are one bare parameter), or if a pattern is invalid or leaves nothing.
    """
    nodes = read_structure(model)
    blocks = _find_blocks(nodes)
    paths: dict[str, list[str]] = {}
    packed: dict[str, str] = {}  # block → its nn.MultiheadAttention
    for i, node in enumerate(nodes):
        if node.region != "attention" or not (node.shape or isinstance(node.module, nn.MultiheadAttention)):
            continue
        block = _block_of_attention(nodes, blocks, i)
        if block is None:
            continue
        if isinstance(node.module, nn.MultiheadAttention):
            packed.setdefault(block, node.path)
        paths.setdefault(block, [])
        if node.shape:
            paths[block].append(node.path)
    if not paths:
        raise ValueError(
            f"No attention with Linear projections was found in {type(model).__name__}. Set `target_modules` to the names of "
            f"the layers to adapt, or to a regular expression on full paths. Its Linear layers: {_linears(nodes)}."
        )
    selected = _select(paths, block_pattern, exclude_blocks)
    for block in selected:
        if block in packed:
            raise ValueError(
                f"'{packed[block]}' is an nn.MultiheadAttention: its q, k and v projections are one bare parameter "
                "(`in_proj_weight`), not Linear layers, so that target_modules='attention' cannot adapt them. Use "
                "target_modules='ffn', or leave such blocks out with `block_pattern` or `exclude_blocks`."
            )
    return selected


def find_blocks_of(model: nn.Module, module_paths: Iterable[str]) -> dict[str, str]:
    """Finds the block that each of the given modules belongs to; used where the user chose the target modules.

    Args:
        model (`nn.Module`): As for [`find_ffn_blocks`].
        module_paths (`Iterable[str]`): Paths of modules of `model`, as in its `named_modules()` without PEFT's wrappers.

    Returns:
        `dict[str, str]`: Module path → block path, in the order given: the block found around it, else the innermost
        element of a `ModuleList`, `Sequential` or `ModuleDict` around it, else the module's own path.

    Raises:
        ValueError: If a path is none of the model's.
    """
    nodes = read_structure(model)
    index_of = {node.path: i for i, node in enumerate(nodes)}
    blocks = {block.index for block in _find_blocks(nodes)}
    found: dict[str, str] = {}
    for path in module_paths:
        if path not in index_of:
            raise ValueError(
                f"{type(model).__name__} has no module '{path}'. Expected a path as in `model.named_modules()`, e.g. "
                f"{_linears(nodes)}."
            )
        index: int | None = index_of[path]
        while index is not None and index >= 0 and index not in blocks:
            index = nodes[index].parent
        if index is None or index < 0:
            index = nearest_element(nodes, nodes[index_of[path]].parent)
        found[path] = path if index is None else nodes[index].path
    return found


@dataclass(slots=True)
class _Block:
    """A block by its index in the node list, the indices of its feed-forward Linears, and what it was found in."""

    index: int
    linears: list[int]
    joint: int  # the innermost module that holds this feed-forward and a mixer


def _find_blocks(nodes: list[Node]) -> list[_Block]:
    """Named feed-forwards first; only where a model has none at all, whatever Linears of the right shape stand in a block."""
    return _blocks_with(nodes, named=True) or _blocks_with(nodes, named=False)


def _blocks_with(nodes: list[Node], named: bool) -> list[_Block]:
    feeds = [node.shape is not None and node.region == ("ffn" if named else "") for node in nodes]
    mixes = [node.region in ("attention", "mixer") and node.opens_region for node in nodes]
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
    candidates: list[tuple[int, int]] = []  # (block, joint)
    unlisted: list[tuple[int, int]] = []
    for joint in reversed(joints):
        for block in _raise_to_blocks(nodes, joint, feeds, mixes):
            (candidates if nodes[block].is_element else unlisted).append((block, joint))
    candidates = _separate(nodes, candidates)
    # Attention and MLP outside of any list are a head (SigLIP's pooling), unless the whole model is written that way.
    candidates = _innermost(nodes, candidates) or unlisted
    blocks = {}
    for block, joint in candidates:
        linears = _confirm_by_shape(nodes, block, named)
        if linears:
            blocks[block] = _Block(block, linears, joint)
    return [blocks[i] for i in sorted(blocks)]


def _raise_to_blocks(nodes: list[Node], joint: int, feeds: list[bool], mixes: list[bool]) -> list[int]:
    """The block or blocks of one innermost module that holds a mixer and a feed-forward."""
    elements = [
        i
        for i in range(joint + 1, nodes[joint].end)
        if nodes[i].is_element and joint in (nodes[i].parent, nodes[nodes[i].parent].parent)
    ]
    feeding = [i for i in elements if feeds[i] and len(_confirm_by_shape(nodes, i, named=False, anything=True)) > 1]
    mixing = [i for i in elements if mixes[i]]
    # One feed-forward after several attentions is a decoder's block; several of each are blocks side by side.
    if min(len(feeding), len(mixing)) > 1:
        return feeding
    element = nearest_element(nodes, joint)
    if element is None and nodes[joint].is_container and feeding:
        return feeding
    return [joint if element is None else element]


def _separate(nodes: list[Node], candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Takes apart an element that holds the same class of block several times, as attributes (`self.block1`, …)."""
    classes: dict[int, list[type]] = {}
    for block, joint in candidates:
        classes.setdefault(block, []).append(type(nodes[joint].module))
    repeated = {b for b, kinds in classes.items() if len(set(kinds)) < len(kinds) and len(set(kinds)) == 1}
    return [(joint if block in repeated else block, joint) for block, joint in candidates]


def _innermost(nodes: list[Node], candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drops elements that contain other blocks: a pooling head's attention and MLP are raised to the whole tower."""
    indices = sorted({block for block, _ in candidates})
    outer = {a for a, b in zip(indices, indices[1:], strict=False) if b < nodes[a].end}
    return [(block, joint) for block, joint in candidates if block not in outer]


def _confirm_by_shape(nodes: list[Node], block: int, named: bool, anything: bool = False) -> list[int]:
    """The feed-forward Linears of a block whose shapes lead out of some width d and back into it."""
    inside = [i for i in range(block, nodes[block].end) if nodes[i].shape is not None]
    linears = [i for i in inside if nodes[i].region in (("ffn", "") if anything else ("ffn" if named else "",))]
    if named:
        # BERT's `intermediate.dense` carries the name, its partner `output.dense` does not.
        unmatched = [i for i in linears if i not in set(_matched(nodes, linears))]
        for i in unmatched:
            others = [j for j in inside if j > i and nodes[j].region == "" and _leads_back(nodes[i].shape, nodes[j].shape)]
            linears.extend(others[:1])
    return _matched(nodes, sorted(set(linears)))


def _matched(nodes: list[Node], linears: list[int]) -> list[int]:
    shapes: dict[tuple[int, int], int] = {}
    for i in linears:
        shapes[nodes[i].shape] = shapes.get(nodes[i].shape, 0) + 1  # type: ignore[index]

    def has_partner(shape: tuple[int, int]) -> bool:
        # With h = d a Linear is its own partner by shape, so that there must be a second one.
        return any(
            count > (other == shape) for other, count in shapes.items() if _leads_back(shape, other) or _leads_back(other, shape)
        )

    return [i for i in linears if has_partner(nodes[i].shape)]  # type: ignore[arg-type]


def _leads_back(up: tuple[int, int] | None, down: tuple[int, int] | None) -> bool:
    """Whether d → h (or packed d → 2h) is followed by h → d."""
    return up is not None and down is not None and up[0] == down[1] and up[1] in (down[0], 2 * down[0])


def _block_of_attention(nodes: list[Node], blocks: list[_Block], index: int) -> str | None:
    """Path of the block that an attention module or projection belongs to, `None` for a head's."""
    for block in blocks:
        if block.index <= index < nodes[block.index].end:
            return nodes[block.index].path
    if any(block.joint <= index < nodes[block.joint].end for block in blocks) or not blocks:
        # The outermost module of this attention; an element around it, or it itself where it is a list element.
        while not nodes[index].opens_region:
            index = nodes[index].parent
        element = nearest_element(nodes, index)
        return nodes[nodes[index].parent if element is None else element].path
    return None


def _select(found: dict[str, list[str]], block_pattern: str | None, exclude_blocks: str | None) -> dict[str, list[str]]:
    keep = _compile(block_pattern, "block_pattern")
    drop = _compile(exclude_blocks, "exclude_blocks")
    selected = {
        block: linears
        for block, linears in found.items()
        if (keep is None or keep.search(block)) and not (drop is not None and drop.search(block))
    }
    if not selected:
        raise ValueError(
            f"block_pattern={block_pattern!r} and exclude_blocks={exclude_blocks!r} leave no block. The blocks of this model are "
            f"{_some(list(found))}; the patterns are searched in these paths."
        )
    return selected


def _compile(pattern: str | None, name: str) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}={pattern!r} is not a regular expression: {error}.") from error


def _explain(model: nn.Module, nodes: list[Node]) -> str:
    fused = [node.path for node in nodes if node.holds_fused_experts]
    feeding = [node for node in nodes if node.region == "ffn"]
    convolutions = [node.path for node in feeding if node.is_convolution]
    mixers = [node for node in nodes if node.region in ("attention", "mixer") and node.opens_region]
    if fused:
        why = f"the experts are fused into 3-D parameters ({_some(fused)}), which are no Linear layers"
    elif convolutions and not any(node.shape for node in feeding):
        why = f"its feed-forwards are convolutional ({_some(convolutions)}), not Linear layers"
    elif not mixers:
        why = "no attention or similar token mixer was found in it, so that no Transformer block could be told from the rest"
    else:
        why = (
            f"it mixes tokens ({_some([node.path for node in mixers])}), but beside that there are no Linear layers of the "
            "shape d → h → d"
        )
    return (
        f"No feed-forward Linear layers were found in {type(model).__name__}: {why}. Set `target_modules` yourself: a list of "
        'module names, e.g. target_modules=["fc1", "fc2"], or one regular expression on full paths, e.g. '
        rf'target_modules=r".*\.layers\.\d+\.fc[12]". Its Linear layers: {_linears(nodes)}.'
    )


def _linears(nodes: list[Node]) -> str:
    return _some([node.path for node in nodes if node.shape is not None])


def _some(names: list[str], limit: int = 6) -> str:
    if not names:
        return "none"
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(f"'{name}'" for name in names[:limit]) + more
