"""The states of a model behind each of its blocks, as one vector for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ..compat import bare
from ..errors import InvalidInputError
from ..tuner import find_ffn_blocks

Pooling = Literal["first", "mean"]


@dataclass
class CapturedStates:
    """The outputs of the blocks in one forward.

    Args:
        paths (`Sequence[str]`):
            Paths of the blocks, in the order of the model.

    Attributes:
        outputs (`dict[str, torch.Tensor]`):
            Output of each block by its path, shape `(B, T, width)` or `(B, width)`, with gradient where the forward
            had one. If a block is called several times, its last output.
    """

    paths: Sequence[str]
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def pooled(self, kind: Pooling, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns one vector for each sample and block, float32, shape `(B, width)`.

        Args:
            kind (`"first"` or `"mean"`):
                The first token, which is the class token in ViT and BERT; or the mean over all tokens.
            mask (`torch.Tensor`, *optional*):
                Shape `(B, T)`, 0 for padding that the mean leaves out, such as `attention_mask`. Ignored for blocks
                with another number of tokens.

        Raises:
            InvalidInputError: If a block was not called.
        """
        if missing := [path for path in self.paths if path not in self.outputs]:
            fix = "Name blocks that the forward of this model calls."
            raise InvalidInputError("blocks that took part in the forward", list(self.outputs), f"{missing} too", fix)
        return {path: _pool(self.outputs[path].float(), kind, mask) for path in self.paths}


def _pool(states: Tensor, kind: Pooling, mask: Tensor | None) -> Tensor:
    if states.ndim == 2:
        return states
    if kind == "first":
        return states.flatten(1, -2)[:, 0]
    tokens = states.flatten(1, -2)
    if mask is None or mask.shape != tokens.shape[:2]:
        return tokens.mean(1)
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def block_paths(model: nn.Module) -> list[str]:
    """Returns the paths of the Transformer blocks in the bare model, in its order; see [`find_ffn_blocks`].

    Args:
        model (`torch.nn.Module`):
            A bare model, a `PeftModel`, or either in a wrapper.

    Raises:
        NoFFNFoundError: If no block is found.
    """
    return list(find_ffn_blocks(bare(model)))


@contextmanager
def captured_states(model: nn.Module, paths: Sequence[str] | None = None) -> Iterator[CapturedStates]:
    """Captures the outputs of blocks while a forward runs in the block.

    Args:
        model (`torch.nn.Module`):
            A bare model, a `PeftModel`, or either in a wrapper.
        paths (`Sequence[str]`, *optional*):
            Paths of modules in the bare model; by default [`block_paths`].

    Yields:
        [`CapturedStates`]: The states, after the forward.

    Example:
        ```py
        >>> with captured_states(model) as captured:
        ...     logits = model(pixel_values=pixels).logits
        >>> captured.pooled("mean")["vit.layers.0"].shape
        torch.Size([8, 768])
        ```
    """
    own = bare(model)
    captured = CapturedStates(list(paths) if paths is not None else block_paths(own))

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found = output if isinstance(output, Tensor) else next(x for x in output if isinstance(x, Tensor))
            captured.outputs[path] = found

        return hook

    hooks = [own.get_submodule(path).register_forward_hook(keep(path)) for path in captured.paths]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
