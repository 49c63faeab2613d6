"""The embedding a classifier decides by: what goes into its classification head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import InvalidInputError
from .base import bare, unwrapped

_FIX = "Prototypes need one head behind one embedding per sample; without it leave both prototype weights at 0."


class NoEmbeddingFoundError(InvalidInputError):
    """No classification head is found in the structure of a model, or the head's input is not a vector."""


def find_head(model: nn.Module) -> str:
    """
    Path of the classification head: the last Linear, convolution or cosine head that maps to `config.num_labels`.

    Last in the order in which modules were made, which puts the head behind everything that comes before it in every
    classifier of transformers. LoRA matrices are not considered.

    Args:
        model (`torch.nn.Module`): a classifier with a `config`, a bare one or a `PeftModel`.

    Returns:
        `str`: a path in `model.named_modules()`.

    Raises:
        NoEmbeddingFoundError: if the configuration does not say how many classes there are, nothing maps to so many,
            or several heads lie side by side (as in distilled models, which average two).
    """
    num_labels = getattr(getattr(bare(model), "config", None), "num_labels", None)
    if not num_labels:
        expected = f"the number of classes of {type(model).__name__}, by which its classification head is found"
        raise NoEmbeddingFoundError("model.config.num_labels", num_labels, expected, _FIX)
    heads = heads_of(model, num_labels)
    if not heads:
        expected = f"one with a layer that maps to its {num_labels} classes"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _FIX)
    *others, head = heads
    beside = [path for path in others if heads[path] == heads[head] and _side_by_side(path, head)]
    if beside:
        expected = f"one with a single head of {num_labels} classes, not {[*beside, head]} side by side"
        raise NoEmbeddingFoundError("model", type(model).__name__, expected, _FIX)
    return head


def heads_of(model: nn.Module, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Paths of all layers that map to so many classes, and the shapes of their weights; those of LoRA left out."""
    adapted: tuple[str, ...] = ()
    heads: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if path.startswith(adapted) and adapted:
            continue
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{path}.",)
            module = module.get_base_layer()
        if (shape := _head_shape(module)) is not None and shape[0] == num_labels:
            heads[path] = shape
    return heads


def _side_by_side(path: str, other: str) -> bool:
    """Whether two paths differ in one name alone, as `head.linear` and `head_dist.linear`, and not in a number."""
    first, second = path.split("."), other.split(".")
    different = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    return len(first) == len(second) and len(different) == 1 and not all(name.isdecimal() for name in different[0])


def _head_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of the weight of a layer that multiplies by it, outputs first."""
    if isinstance(module, nn.Embedding):
        return None
    if isinstance(module, nn.Linear):
        # Not from the weight, which quantisation packs into another shape.
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) and weight.ndim in (2, 4) else None


class Caught:
    """What went into the head in one forward.

    Attributes:
        inputs (`list[torch.Tensor]`): one for each time that the head was called.
    """

    def __init__(self, path: str):
        self.path = path
        self.inputs: list[Tensor] = []

    @property
    def embeddings(self) -> Tensor:
        """
        The embeddings of the batch, float32, shape `(B, width)`, with gradient where the forward had one.

        Raises:
            NoEmbeddingFoundError: if the head was not called exactly once, or not on one vector for each sample.
        """
        if len(self.inputs) != 1:
            raise NoEmbeddingFoundError(f"calls of the head {self.path!r}", len(self.inputs), "one a forward", _FIX)
        (found,) = self.inputs
        flat = found.flatten(1)
        # One vector per sample: (B, width), or (B, width, 1, 1) and the like. More is a head on every token or place.
        if sum(size > 1 for size in found.shape[1:]) > 1:
            name = f"the input shape of the head {self.path!r}"
            raise NoEmbeddingFoundError(name, tuple(found.shape), "one vector for each sample", _FIX)
        return flat.float()


@contextmanager
def caught_embeddings(model: nn.Module, path: str | None = None) -> Iterator[Caught]:
    """
    Catches what goes into the head while a forward runs in the block.

    Args:
        model (`torch.nn.Module`): a classifier; may be a `PeftModel` or wrapped for several processes.
        path (`str`, *optional*): path of the head in the unwrapped model; by default [`find_head`].

    Example:

        ```py
        >>> with caught_embeddings(model) as caught:
        ...     logits = model(pixel_values=pixels).logits
        >>> caught.embeddings.shape
        torch.Size([8, 768])
        ```
    """
    own = unwrapped(model)
    caught = Caught(path if path is not None else find_head(own))

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.inputs.append(args[0])

    hook = own.get_submodule(caught.path).register_forward_pre_hook(keep)
    try:
        yield caught
    finally:
        hook.remove()
