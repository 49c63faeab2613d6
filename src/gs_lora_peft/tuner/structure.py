"""Tells the role of each module of a network from its name, its class and its place.

[`read_structure`] flattens a model into a list of [`Node`]s in module order, and tells token mixers from
feed-forwards. `tuner/targets.py` finds the blocks in that list. No architecture is known here: there is a small
vocabulary of names, and the rest is structure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..compat import base_of

Role = Literal["attention", "mixer", "ffn", "skip", ""]

# All patterns are matched against snake_case: `Blip2QFormerSelfAttention` is `blip2_q_former_self_attention`.
_ATTENTION = re.compile(r"attn|attention|(?:^|_)(?:mha|msa|mhsa|mhca)\d*(?:_|$)")

_FFN = re.compile(
    r"mlp|ffn|ffwd|feed_?forward|(?:^|_)ff\d*(?:_|$)|intermediate|expert|(?:^|_)moe(?:_layer|_block)?$|dense_relu|glu$"
)

# Feed-forward only as names of Linears directly in a block (OPT, nn.TransformerEncoderLayer).
_FFN_LINEAR = re.compile(
    r"(?:fc|lin|linear|w|dense|layer)_?\d(?:_|$)|c_fc|wi(?:_\d)?$|wo$|(?:gate|up|down|gate_up)_?proj(?:_|$)"
    r"|dense_\d?h_to_\d?h"
)

# Mixers other than attention. The patterns above come first: Nemotron-H calls its feed-forward `mixer`, too.
_MIXER = re.compile(
    r"mixer|mamba|(?:^|_)ssm|retention|delta_net|(?:^|_)lru|recurrent|time_mix|token_mix|temporal_block|short_conv"
    r"|modulation|hyena|wkv"
)

# Small networks of the shape d → h → d that are not feed-forward: routers, adapters, position biases. Names with
# `attn` or `attention` are excepted: `RelPosAttention` is attention.
_SKIP = re.compile(
    r"router|adapt[eo]r|embeddings?$|offset|attention_weights"
    r"|^(?!.*att(?:n|ention)).*(?:rel(?:ative)?_pos|cpb|(?:^|_)rpe(?:_|$)|bias|(?:time|timestep|rotary|patch)_emb"
    r"|pos(?:ition)?s?_(?:emb|enc|mlp|head|proj))"
)

# Adaptive norms, which have matrices. Only the name of the instance counts: the class `PreNorm` wraps an attention or
# a feed-forward, and `NormMlp` is one.
_SKIP_INSTANCE = re.compile(r"(?:^|_)norm\d*$|^norm\d*_|layer_?norm|batch_?norm|ada_?ln")

# Attention with another name, or without one, is found by its projections.
_PREFIX = r"(?:to_|w_?|c_|in_proj_|linear_|proj_|fc_)?"

_FUSED_QKV = re.compile(_PREFIX + r"qkv(?:_proj|_linear)?|query_key_value|queries_keys_values")
_QUERY = re.compile(_PREFIX + r"(?:q|query|queries)(?:_proj|_linear|_lin)?")
_KEY = re.compile(_PREFIX + r"(?:k|kv|key|keys)(?:_proj|_linear|_lin)?")
_VALUE_OR_OUT = re.compile(_PREFIX + r"(?:v|value|values|o|out)(?:_proj|_linear|_lin)?|(?:c_)?proj|projection|dense")
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(slots=True)
class Node:
    """One module of the flattened model.

    Args:
        path (`str`):
            Dotted path in the model, without PEFT's layers.
        module (`nn.Module`):
            The module; if PEFT wraps it, the layer inside.
        parent (`int`):
            Index of the parent in the list, -1 for the root.
        is_element (`bool`):
            Whether the parent is a `ModuleList`, `Sequential` or `ModuleDict`.
        shape (`tuple[int, int]`, *optional*):
            (in, out) features of a Linear.
        end (`int`, *optional*, defaults to 0):
            Index one past the last descendant. The descendants of node i are `nodes[i + 1 : nodes[i].end]`.
        role (`str`, *optional*, defaults to `""`):
            Role by its own name and class.
        region (`str`, *optional*, defaults to `""`):
            Role of the region that it is part of: its own, or that of a module around it.
        region_root (`int`, *optional*, defaults to -1):
            Index of the module that the region begins with, e.g. the whole attention; -1 outside all regions.
    """

    path: str
    module: nn.Module
    parent: int
    is_element: bool
    shape: tuple[int, int] | None
    end: int = 0
    role: Role = ""
    region: Role = ""
    region_root: int = -1

    @property
    def leaf(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def is_container(self) -> bool:
        """Whether it is a `ModuleList`, `Sequential` or `ModuleDict`."""
        return isinstance(self.module, _CONTAINERS)

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution."""
        return isinstance(self.module, _CONVOLUTIONS)

    @property
    def holds_fused_experts(self) -> bool:
        """Whether it holds 3-D parameters with the matrices of several experts."""
        # A stack of matrices; RWKV's feed-forward has vectors of shape (1, 1, d).
        stacks = (p.dim() == 3 and min(p.shape[1:]) > 1 for p in self.module._parameters.values() if p is not None)
        return self.region == "ffn" and not self.is_convolution and any(stacks)


def read_structure(model: nn.Module) -> list[Node]:
    """Flattens a model into nodes in the order of `named_modules`, each with its role and region.

    Args:
        model (`nn.Module`):
            Any model. The paths are those of the model inside PEFT's layers. Those of a `PeftModel` are paths in its
            base model, which `PeftModel.get_submodule` understands too.

    Returns:
        `list[Node]`: The nodes. A module shared by several parents appears once, under its first path.
    """
    nodes: list[Node] = []
    _flatten(base_of(model), "", -1, False, nodes, set())
    _assign_roles(nodes)
    _assign_regions(nodes)
    return nodes


def nearest_element(nodes: list[Node], index: int) -> int | None:
    """Returns the index of the innermost container element at or above a node, or `None` if there is none."""
    while index >= 0:
        if nodes[index].is_element:
            return index
        index = nodes[index].parent
    return None


def _flatten(module: nn.Module, path: str, parent: int, is_element: bool, nodes: list[Node], seen: set[int]) -> None:
    module = _without_tuner_layer(module)
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


def _without_tuner_layer(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            return module


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Returns (in, out) of a Linear: torch's, GPT-2's transposed `Conv1D`, or a quantised one."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not isinstance(d_in, int) or not isinstance(d_out, int):
        return None
    # Packed weights have other names or are methods. A weight of three dimensions is a stack of Linears.
    weight = getattr(module, "weight", None)
    return None if isinstance(weight, torch.Tensor) and weight.dim() != 2 else (d_in, d_out)


@cache
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@cache
def _role_by_name(instance: str, class_name: str, class_first: bool, is_linear: bool, mixes_below: bool) -> Role:
    """Returns the role by the names of instance and class. The name of the instance weighs more."""
    instance, class_name = _snake(instance), _snake(class_name)
    # A class `RelPosBlock` that holds attention is not a position bias.
    if _SKIP.search(instance) or _SKIP_INSTANCE.search(instance) or (_SKIP.search(class_name) and not mixes_below):
        return "skip"
    names = (class_name, instance) if class_first else (instance, class_name)
    for name in names:
        if _ATTENTION.search(name):
            return "attention"
        if _FFN.search(name):
            return "ffn"
    if is_linear and _FFN_LINEAR.match(instance):
        return "ffn"
    return "mixer" if any(map(_MIXER.search, names)) else ""


def _role_of(nodes: list[Node], node: Node, mixes_below: bool) -> Role:
    parent = nodes[node.parent]
    # An element of a list has only a number: its class counts first, then the name of the list.
    numbered = isinstance(parent.module, nn.ModuleList)
    instance = parent.leaf if numbered else node.leaf
    return _role_by_name(instance, type(node.module).__name__, numbered, node.shape is not None, mixes_below)


def _assign_roles(nodes: list[Node]) -> None:
    """Gives each node its role. The structure overrides names."""
    weighty = [False] * len(nodes)  # holds a matrix, unlike dropouts and norms called `attention_…`
    mixes_below = [False] * len(nodes)
    feeds_below = [False] * len(nodes)
    for i in range(len(nodes) - 1, 0, -1):
        node, up = nodes[i], nodes[i].parent
        dimensions = (p.dim() for p in node.module._parameters.values() if p is not None)
        weighty[i] |= node.shape is not None or max(dimensions, default=0) > 1
        # A ModuleList is never one attention or feed-forward; XLM's `attentions` and `ffns` hold one per block.
        named = weighty[i] and not isinstance(node.module, nn.ModuleList)
        role = _role_of(nodes, node, mixes_below[i]) if named else ""
        # A class `AttentionBlock` or `MambaDecoderLayer` that holds a mixer and a feed-forward is a block.
        if mixes_below[i] and (role == "ffn" or (role in ("attention", "mixer") and feeds_below[i])):
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
    """Recognises attention by its projections: in a module of any name, or in a block that holds them itself."""
    leaves = [_snake(child.leaf) for child in children]
    separate = any(map(_QUERY.fullmatch, leaves)) and any(map(_KEY.fullmatch, leaves))
    if not separate and not any(map(_FUSED_QKV.fullmatch, leaves)):
        return
    if not has_ffn and node.parent >= 0:
        node.role = "attention"
        return
    for child, leaf in zip(children, leaves, strict=True):
        if child.role == "" and any(p.fullmatch(leaf) for p in (_FUSED_QKV, _QUERY, _KEY, _VALUE_OR_OUT)):
            child.role = "attention"


def _assign_regions(nodes: list[Node]) -> None:
    """Passes roles down. Skipped parts stay skipped. Inside attention everything is attention, whatever its name."""
    rank = {"skip": 3, "attention": 2, "mixer": 2, "ffn": 1, "": 0}
    for i, node in enumerate(nodes[1:], start=1):
        around = nodes[node.parent]
        opens = rank[node.role] > rank[around.region]
        node.region, node.region_root = (node.role, i) if opens else (around.region, around.region_root)
