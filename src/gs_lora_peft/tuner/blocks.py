"""Finds the feed-forward Linears of a model and the Transformer blocks they belong to, in any architecture.

A forgetting task keeps or drops a block as a whole. A block is the innermost element of a `ModuleList`, `Sequential`
or `ModuleDict` that holds a token mixer (mostly attention) and a feed-forward. Three layouts need more than that:

- attention and feed-forward alternate as elements of one list (LeViT): each feed-forward element is a block;
- the two are elements of a small list inside a block (T5, lucidrains' ViT): the block is what holds that list;
- no list anywhere (`self.block1 = Block(...)`): the innermost module that holds both is the block.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from ..errors import InvalidInputError
from .structure import Node, nearest_element, read_structure
from .targets import Block, compiled_pattern, search_blocks


class NoFFNFoundError(InvalidInputError):
    """The model has no feed-forward Linears that can be found. `expected` says why, and `fix` what to set instead."""


def find_ffn_blocks(
    model: nn.Module, block_pattern: str | None = None, exclude_blocks: str | None = None
) -> dict[str, list[str]]:
    r"""Finds the feed-forward Linears of every Transformer block.

    Attention, position biases, routers, adapters, stage transitions and heads are never among them. Shapes confirm
    what is found: d → h → d, gate and up d → h with down h → d, or packed d → 2h with h → d.

    Args:
        model (`nn.Module`):
            Any model, on any device (meta included). Linears are `nn.Linear`, GPT-2's `Conv1D` and quantised ones.
            A model wrapped by PEFT gives the same paths as the one inside.
        block_pattern (`str`, *optional*):
            Regular expression, searched (`re.search`) in block paths. Only blocks that match are returned, e.g.
            `"vision_model"`, or `r"layers\.(8|9|10|11)$"`.
        exclude_blocks (`str`, *optional*):
            Regular expression, searched in block paths: blocks that match are left out. Wins over `block_pattern`.

    Returns:
        `dict[str, list[str]]`: Block path → paths of its feed-forward Linears, both in module order.

    Raises:
        NoFFNFoundError: If none can be found. The message says why, and what to set instead.
        InvalidInputError: If a pattern is not a regular expression, if `exclude_blocks` leaves nothing out, or if no
            block is left.

    Warns:
        UserWarning: If some experts are fused into 3-D parameters, which are not Linears.

    Example:
        ```py
        >>> find_ffn_blocks(ViTModel(ViTConfig(num_hidden_layers=1)))
        {'layers.0': ['layers.0.mlp.fc1', 'layers.0.mlp.fc2']}
        ```
    """
    nodes = read_structure(model)
    blocks = search_blocks(nodes)
    if not blocks:
        raise NoFFNFoundError("model", type(model).__name__, *_explain(nodes))
    _warn_of_fused_experts(model, nodes)
    found = {nodes[block.index].path: [nodes[i].path for i in block.linears] for block in blocks}
    return _select(found, block_pattern, exclude_blocks)


def find_attention_blocks(
    model: nn.Module, block_pattern: str | None = None, exclude_blocks: str | None = None
) -> dict[str, list[str]]:
    """Finds the attention projections (q, k, v or fused qkv, and output) of every Transformer block.

    The blocks are those of [`find_ffn_blocks`]. If attention is a list element of its own (LeViT), that element is its
    block. If a model has no feed-forward Linears (fused experts), the element around the attention is.

    Args:
        model (`nn.Module`):
            As for [`find_ffn_blocks`].
        block_pattern (`str`, *optional*):
            As for [`find_ffn_blocks`].
        exclude_blocks (`str`, *optional*):
            As for [`find_ffn_blocks`].

    Returns:
        `dict[str, list[str]]`: Block path → paths of its attention projections, both in module order.

    Raises:
        InvalidInputError: If no attention has Linear projections, if the attention of a selected block is an
            `nn.MultiheadAttention` (whose q, k and v are one parameter), if a pattern is not a regular expression, if
            `exclude_blocks` leaves nothing out, or if no block is left.
    """
    nodes = read_structure(model)
    blocks = search_blocks(nodes)
    paths: dict[str, list[str]] = {}
    packed: dict[str, str] = {}  # block → the nn.MultiheadAttention in it
    for i, node in enumerate(nodes):
        is_packed = isinstance(node.module, nn.MultiheadAttention)
        if node.region != "attention" or (node.shape is None and not is_packed):
            continue
        block = _block_of_attention(nodes, blocks, i)
        if block is not None and is_packed:
            packed.setdefault(block, node.path)
        if block is not None:
            paths.setdefault(block, []).extend([node.path] if node.shape else [])
    if not paths:
        raise InvalidInputError(
            "model",
            type(model).__name__,
            "one with attention that has Linear projections",
            "Set `target_modules` to the names of the layers to adapt, or to a regular expression on full paths. Its "
            f"Linear layers: {_linears(nodes)}.",
        )
    selected = _select(paths, block_pattern, exclude_blocks)
    for block in selected:
        if block in packed:
            raise InvalidInputError(
                packed[block],
                "nn.MultiheadAttention",
                "Linear projections, but its q, k and v are one parameter (`in_proj_weight`)",
                "Use target_modules='ffn', or leave such blocks out with `block_pattern` or `exclude_blocks`.",
            )
    return selected


def find_blocks_of(model: nn.Module, module_paths: Iterable[str]) -> dict[str, str]:
    """Finds the block of each module, for target modules that the user chose.

    Args:
        model (`nn.Module`):
            As for [`find_ffn_blocks`].
        module_paths (`Iterable[str]`):
            Paths of modules of `model`, as in `named_modules()` without PEFT's wrappers.

    Returns:
        `dict[str, str]`: Module path → block path, in the given order. The block is the one around the module, else
        the innermost element of a `ModuleList`, `Sequential` or `ModuleDict` around it, else the module itself.

    Raises:
        InvalidInputError: If the model has no module of that path.
    """
    nodes = read_structure(model)
    index_of = {node.path: i for i, node in enumerate(nodes)}
    blocks = {block.index for block in search_blocks(nodes)}
    found: dict[str, str] = {}
    for path in module_paths:
        if path not in index_of:
            expected = f"paths of the {type(model).__name__} as in `model.named_modules()`, e.g. {_linears(nodes)}"
            raise InvalidInputError("module_paths", path, expected)
        around = index_of[path]
        while around >= 0 and around not in blocks:
            around = nodes[around].parent
        element = around if around >= 0 else nearest_element(nodes, nodes[index_of[path]].parent)
        found[path] = path if element is None else nodes[element].path
    return found


def warn_of_fused_experts(model: nn.Module) -> None:
    """Warns if a model has experts that no target reaches. [`find_ffn_blocks`] does so by itself.

    Args:
        model (`nn.Module`):
            As for [`find_ffn_blocks`].

    Warns:
        UserWarning: If experts are fused into 3-D parameters.
    """
    _warn_of_fused_experts(model, read_structure(model))


def _warn_of_fused_experts(model: nn.Module, nodes: list[Node]) -> None:
    fused = [node.path for node in nodes if node.holds_fused_experts]
    if fused:
        warnings.warn(
            f"{type(model).__name__} has experts that are fused into 3-D parameters ({_some(fused)}). They are not "
            "Linear layers and are not adapted, so that they do not forget.",
            stacklevel=3,
        )


def _block_of_attention(nodes: list[Node], blocks: list[Block], index: int) -> str | None:
    """Returns the path of the block of an attention module or projection, or `None` if it is part of a head."""
    for block in blocks:
        if block.index <= index < nodes[block.index].end:
            return nodes[block.index].path
    if blocks and not any(block.joint <= index < nodes[block.joint].end for block in blocks):
        return None
    root = nodes[index].region_root
    element = nearest_element(nodes, root)
    return nodes[nodes[root].parent if element is None else element].path


def _select(
    found: dict[str, list[str]], block_pattern: str | None, exclude_blocks: str | None
) -> dict[str, list[str]]:
    keep = None if block_pattern is None else compiled_pattern(block_pattern, "block_pattern")
    drop = None if exclude_blocks is None else compiled_pattern(exclude_blocks, "exclude_blocks")
    kept = {block: linears for block, linears in found.items() if keep is None or keep.search(block)}
    selected = {block: linears for block, linears in kept.items() if drop is None or not drop.search(block)}
    if drop is not None and kept and len(selected) == len(kept):
        beside = "" if keep is None else f" that match block_pattern={block_pattern!r}"
        expected = f"a pattern that is found in at least one of the blocks{beside}: {_some(list(kept))}"
        raise InvalidInputError("exclude_blocks", exclude_blocks, expected, "Leave it out, or correct it.")
    if not selected:
        name, pattern = ("exclude_blocks", exclude_blocks) if keep is None else ("block_pattern", block_pattern)
        beside = "" if keep is None or drop is None else f", with exclude_blocks={exclude_blocks!r},"
        raise InvalidInputError(
            name, pattern, f"a pattern that{beside} leaves at least one block of {_some(list(found))}"
        )
    return selected


def _explain(nodes: list[Node]) -> tuple[str, str]:
    """Returns what was expected of the model, with the reason why no feed-forward was found, and what to set."""
    fused = [node.path for node in nodes if node.holds_fused_experts]
    feeding = [node for node in nodes if node.region == "ffn"]
    convolutions = [node.path for node in feeding if node.is_convolution]
    mixers = [
        node.path for i, node in enumerate(nodes) if node.region in ("attention", "mixer") and node.region_root == i
    ]
    if fused:
        why = f"its experts are fused into 3-D parameters ({_some(fused)}), which are not Linear layers"
    elif convolutions and not any(node.shape for node in feeding):
        why = f"its feed-forwards are convolutional ({_some(convolutions)}), not Linear layers"
    elif not mixers:
        why = "no attention or similar token mixer was found in it, so that blocks cannot be told from the rest"
    else:
        why = (
            f"it mixes tokens ({_some(mixers)}), but name and shape do not show which of its Linear layers lead "
            "d → h → d as a feed-forward"
        )
    return (
        f"one with feed-forward Linear layers, but {why}",
        'Set `target_modules` yourself: a list of module names, e.g. target_modules=["fc1", "fc2"], or one regular '
        r'expression on full paths, e.g. target_modules=r".*\.layers\.\d+\.fc[12]". Its Linear layers: '
        f"{_linears(nodes)}.",
    )


def _linears(nodes: list[Node]) -> str:
    return _some([node.path for node in nodes if node.shape is not None])


def _some(names: list[str], limit: int = 6) -> str:
    if not names:
        return "none"
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(f"'{name}'" for name in names[:limit]) + more
