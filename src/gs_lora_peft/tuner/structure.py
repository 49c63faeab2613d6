"""What each module of a network is for, read off its name, its class and its place: token mixer, feed-forward or neither.

[`read_structure`] flattens a model into a list of [`Node`]s in module order, once; `tuner/blocks.py` finds the blocks in
that list. Nothing here knows an architecture: there is a small vocabulary of names, and everything else is structure.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

Role = Literal["attention", "mixer", "ffn", "skip", ""]

# Matched against snake_case names of modules and classes: `Blip2QFormerSelfAttention` is `blip2_q_former_self_attention`.
_ATTENTION = re.compile(r"attn|attention|(?:^|_)m(?:ulti)?_?h?(?:s|c)?a\d*(?:_|$)")
_FFN = re.compile(
    r"mlp|ffn|ffwd|feed_?forward|(?:^|_)ff\d*(?:_|$)|intermediate|expert|(?:^|_)moe(?:_|$)|dense_relu|glu(?:_|$)"
)
# Names that mean a feed-forward only on a Linear that stands in the block itself (OPT, DAB-DETR, nn.TransformerEncoderLayer).
_FFN_LINEAR = re.compile(
    r"(?:fc|lin|linear|w|w_|dense|dense_|layer_)\d(?:_|$)|c_fc|wi(?:_\d)?$|wo$|(?:gate|up|down|gate_up)_?proj(?:_|$)"
    r"|dense_\d?h_to_\d?h"
)
# Mixers other than attention. Weaker than the words above: Nemotron-H calls its feed-forward `mixer`, too.
_MIXER = re.compile(
    r"mixer|mamba|(?:^|_)ssm|retention|delta_net|(?:^|_)lru|recurrent|time_mix|token_mix|temporal_block|short_conv"
    r"|modulation|hyena|wkv"
)
# Small networks of the same shape d → h → d that are no feed-forward: routers, adapters, position biases, norms.
_SKIP_LEAF = re.compile(
    r"router|adapt[eo]r|(?:^|_)norm\d*$|^norm|layer_?norm\d*$|ada_?ln|bias|cpb|(?:^|_)rpe|rel(?:ative)?_pos"
    r"|pos(?:ition)?s?_(?:emb|enc|mlp|head|proj)|(?:time|timestep|rotary|patch)_emb|offset|attention_weights"
)
_SKIP_CLASS = re.compile(r"router|adapt[eo]r|(?:emb|embeddings?)$|bias")

_FUSED_QKV = re.compile(r"(?:to_|w_?|c_|in_proj_|linear_|proj_)?qkv(?:_proj|_linear)?|query_key_value|queries_keys_values")
_QUERY = re.compile(r"(?:to_|w_?|linear_|proj_|fc_)?(?:q|query|queries)(?:_proj|_linear|_lin)?")
_KEY = re.compile(r"(?:to_|w_?|linear_|proj_|fc_)?(?:k|kv|key|keys)(?:_proj|_linear|_lin)?")
_VALUE_OR_OUT = re.compile(
    r"(?:to_|w_?|linear_|proj_|fc_)?(?:v|value|values|o|out)(?:_proj|_linear|_lin)?|proj|c_proj|projection|dense"
)

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(slots=True)
class Node:
    """One module of the flattened model.

    Args:
        path (`str`): Dotted path from the model that was given, without anything PEFT put in between.
        module (`nn.Module`): The module itself; for one wrapped by PEFT, the layer underneath.
        parent (`int`): Index of the parent in the list, -1 for the root.
        is_element (`bool`): Whether the parent is a `ModuleList`, `Sequential` or `ModuleDict`.
        shape (`tuple[int, int]`, *optional*): (in, out) features if this is a Linear.
        end (`int`): Index one past the last descendant; descendants of node i are `nodes[i + 1 : nodes[i].end]`.
        role (`str`): What the module is by its own name and class.
        region (`str`): What it is part of: its own role or that of the module around it.
        opens_region (`bool`): Whether the region begins here, i.e. this is a whole attention module, not its part.
    """

    path: str
    module: nn.Module
    parent: int
    is_element: bool
    shape: tuple[int, int] | None
    end: int = 0
    role: Role = ""
    region: Role = ""
    opens_region: bool = False

    @property
    def leaf(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def is_container(self) -> bool:
        return isinstance(self.module, _CONTAINERS)

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.module, _CONVOLUTIONS)

    @property
    def holds_fused_experts(self) -> bool:
        return self.region == "ffn" and any(p is not None and p.dim() == 3 for p in self.module._parameters.values())


def read_structure(model: nn.Module) -> list[Node]:
    """Flattens a model into nodes in the order of `named_modules`, each with its role and region.

    Args:
        model (`nn.Module`): Any model. PEFT wrappers are looked through, so that the paths are those of the unwrapped
            model; of a `PeftModel` they are relative to the base model (`get_submodule` understands them on both).

    Returns:
        `list[Node]`: The nodes; a module shared by several parents appears once, under its first path.
    """
    while isinstance(model, BaseTuner) or hasattr(model, "get_base_model"):
        inner = model.model if isinstance(model, BaseTuner) else model.get_base_model()
        if inner is model:
            break
        model = inner
    nodes: list[Node] = []
    _flatten(model, "", -1, False, nodes, set())
    _assign_roles(nodes)
    _assign_regions(nodes)
    return nodes


def nearest_element(nodes: list[Node], index: int) -> int | None:
    """Index of the innermost container element at or above a node; `None` if there is none."""
    while index >= 0:
        if nodes[index].is_element:
            return index
        index = nodes[index].parent
    return None


def _flatten(module: nn.Module, path: str, parent: int, is_element: bool, nodes: list[Node], seen: set[int]) -> None:
    module = _unwrap(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    index = len(nodes)
    node = Node(path, module, parent, is_element, _linear_shape(module))
    nodes.append(node)
    for name, child in module._modules.items():
        if child is not None:
            _flatten(child, f"{path}.{name}" if path else name, index, node.is_container, nodes, seen)
    node.end = len(nodes)


def _unwrap(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            return module


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a Linear of whatever make: torch's, GPT-2's transposed one, or a quantised stand-in."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in shape):
        return None
    weight = getattr(module, "weight", None)
    # Packed weights (4-bit, GPTQ's `qweight`) have other shapes or none, but a grouped one of more dimensions is no Linear.
    if isinstance(weight, torch.Tensor) and weight.dim() != 2:
        return None
    return shape  # type: ignore[return-value]


@lru_cache(maxsize=None)
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@lru_cache(maxsize=None)
def _role_by_name(leaf: str, class_name: str, is_linear: bool) -> Role:
    """The role that the words give. What the author called the instance weighs more than what they called the class."""
    leaf, class_name = _snake(leaf), _snake(class_name)
    if _SKIP_LEAF.search(leaf) or _SKIP_CLASS.search(class_name):
        return "skip"
    for name in (leaf, class_name):
        if _ATTENTION.search(name):
            return "attention"
        if _FFN.search(name):
            return "ffn"
    if is_linear and _FFN_LINEAR.match(leaf):
        return "ffn"
    if _MIXER.search(leaf) or _MIXER.search(class_name):
        return "mixer"
    return ""


def _assign_roles(nodes: list[Node]) -> None:
    """Gives each node its role; names alone are not believed where the structure says otherwise."""
    weighty = [False] * len(nodes)  # holds a matrix, which dropouts and norms called `attention_…` do not
    mixes_below = [False] * len(nodes)
    feeds_below = [False] * len(nodes)
    for i in range(len(nodes) - 1, 0, -1):
        node, up = nodes[i], nodes[i].parent
        weighty[i] |= node.shape is not None or any(p is not None and p.dim() > 1 for p in node.module._parameters.values())
        role = _role_by_name(node.leaf, type(node.module).__name__, node.shape is not None) if weighty[i] else ""
        # A module called `AttentionBlock` or `MambaDecoderLayer` that holds a mixer and a feed-forward is a block.
        if (role in ("attention", "mixer") and mixes_below[i] and feeds_below[i]) or (role == "ffn" and mixes_below[i]):
            role = ""
        node.role = role
        weighty[up] |= weighty[i]
        if role != "skip":
            mixes_below[up] |= mixes_below[i] or role in ("attention", "mixer")
            feeds_below[up] |= feeds_below[i] or role == "ffn"
    children: dict[int, list[Node]] = {}
    for node in nodes[1:]:
        children.setdefault(node.parent, []).append(node)
    for i, own in children.items():
        if nodes[i].role == "":
            _find_unnamed_attention(nodes[i], own, feeds_below[i])


def _find_unnamed_attention(node: Node, children: list[Node], has_ffn: bool) -> None:
    """Recognises attention by its projections: a module of any name with q and k, or a block with them laid out flat."""
    leaves = [_snake(child.leaf) for child in children]
    fused = any(map(_FUSED_QKV.fullmatch, leaves))
    if not fused and not (any(map(_QUERY.fullmatch, leaves)) and any(map(_KEY.fullmatch, leaves))):
        return
    if not has_ffn and node.parent >= 0:
        node.role = "attention"
        return
    for child, leaf in zip(children, leaves, strict=True):
        if child.role == "" and any(p.fullmatch(leaf) for p in (_FUSED_QKV, _QUERY, _KEY, _VALUE_OR_OUT)):
            child.role = "attention"


def _assign_regions(nodes: list[Node]) -> None:
    """Hands roles down. Skipped parts stay skipped; inside attention everything is attention, whatever it is called."""
    rank = {"skip": 3, "attention": 2, "mixer": 2, "ffn": 1, "": 0}
    for node in nodes[1:]:
        around = nodes[node.parent].region
        node.opens_region = rank[node.role] > rank[around]
        node.region = node.role if node.opens_region else around
