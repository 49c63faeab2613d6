"""The states of a model behind each of its blocks, as one vector for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..compat import bare, unwrapped
from ..errors import InvalidInputError
from ..tuner import find_ffn_blocks
from .heads import logits_of
from .losses import GlobalMean, identity

Pooling = Literal["token", "mean"]

# What an attacker may read of a block, and its weight: the token that a head reads, and the mean over all tokens. The
# mean needs more, because every token of an image takes part in it, and attention hands only some of that to another.
_POOLINGS: dict[Pooling, float] = {"token": 1.0, "mean": 3.0}

# Their heads read the last token, and their attention has no `is_causal` that says why.
_CAUSAL_UNSAID = ("bloom", "mpt", "openai-gpt", "xlnet")

# Dimensions that hardly vary among kept samples are measured in this share of the mean deviation of all dimensions.
_SMALLEST_SCALE = 0.1

# Below this share of their size, states do not vary at all, and are measured in their size.
_SMALLEST_SHARE = 1e-4


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
        causal (`set[str]`):
            Paths of the blocks in which a token sees only what stands before it, so that the last one tells most.
    """

    paths: Sequence[str]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    causal: set[str] = field(default_factory=set)

    def pooled(self, kind: Pooling, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns one vector for each sample and block, float32, shape `(B, width)`.

        Args:
            kind (`"token"` or `"mean"`):
                The first token, which is the class token in ViT and BERT, or with causal attention the last one, which
                the heads of GPT and Llama read; or the mean over all tokens.
            mask (`torch.Tensor`, *optional*):
                Shape `(B, T)`, 0 for padding, which does not count, such as `attention_mask`. Ignored for blocks with
                another number of tokens.

        Raises:
            InvalidInputError: If a block was not called.
        """
        if missing := [path for path in self.paths if path not in self.outputs]:
            fix = "Name blocks that the forward of this model calls."
            raise InvalidInputError("blocks that took part in the forward", list(self.outputs), f"{missing} too", fix)
        return {path: self._pool(path, kind, mask) for path in self.paths}

    def _pool(self, path: str, kind: Pooling, mask: Tensor | None) -> Tensor:
        states, causal = self.outputs[path].float(), path in self.causal
        if states.ndim == 2:
            return states
        tokens = states.flatten(1, -2)
        fits = mask is not None and mask.shape == tokens.shape[:2]
        if kind == "token" and not (fits and causal):
            return tokens[:, -1 if causal else 0]
        if mask is None or not fits:
            return tokens.mean(1)
        if kind == "mean":
            weights = mask.to(tokens.dtype)[..., None]
            return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        # Padding may stand on either side.
        last = torch.where(mask > 0, torch.arange(mask.shape[1], device=mask.device), 0).argmax(1)
        return tokens[torch.arange(len(tokens), device=tokens.device), last]


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
    everywhere = getattr(getattr(own, "config", None), "model_type", None) in _CAUSAL_UNSAID
    captured.causal = {path for path in captured.paths if everywhere or _is_causal(own.get_submodule(path))}

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


def _is_causal(block: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in block.modules())


def rows_of(inputs: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Some samples of a batch; what does not have a row for each sample stays as it is."""
    count = len(inputs["labels"])
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in inputs.items()
    }


def readings(captured: CapturedStates, inputs: Mapping[str, Any]) -> list[Tensor]:
    """The states of a batch behind every block, by each way to read them, float32, shape `(B, width)`."""
    mask = inputs.get("attention_mask")
    found = [captured.pooled(kind, mask) for kind in _POOLINGS]
    return [states[path] for path in captured.paths for states in found]


def reading_weights(count: int) -> list[float]:
    """The weight of each of `count` readings in the distance of states."""
    blocks = range(1, 1 + count // len(_POOLINGS))
    return [weight / block for block in blocks for weight in _POOLINGS.values()]


@torch.no_grad()
def state_scales(
    model: nn.Module,
    blocks: Sequence[str],
    batches: Iterable[dict[str, Any]],
    forget_classes: Sequence[int] = (),
    global_sum: GlobalMean = identity,
    collect: Callable[[list[Tensor], Tensor], None] | None = None,
) -> list[Tensor]:
    """The standard deviation of the states of kept samples, in one pass over labelled data.

    Args:
        model (`torch.nn.Module`):
            A classifier, as it was before the task and in eval mode.
        blocks (`Sequence[str]`):
            Paths of the blocks in the bare model.
        batches (`Iterable[dict]`):
            This process's batches with `labels`, on the model's device.
        forget_classes (`Sequence[int]`, *optional*, defaults to none):
            Classes that do not count.
        global_sum (`Callable`, *optional*):
            Sums a tensor over processes; identity by default.
        collect (`Callable`, *optional*):
            Is called with the readings of each batch and with which of its samples are kept, bool, shape `(B,)`.

    Returns:
        `list[torch.Tensor]`: float32, shape `(width,)` for each reading, positive; the same in every process. A
        dimension that hardly varies gets a tenth of the mean of all. If nothing varies, all are the root mean square
        of the states, or 1.

    Raises:
        InvalidInputError: If a process has no data.
    """
    own, sums = unwrapped(model), None
    for batch in batches:
        with captured_states(own, blocks) as captured:
            logits_of(own, batch)
        states, labels = readings(captured, batch), batch["labels"]
        # In float64 the result does not depend on the order and the size of the batches.
        dtype = torch.float32 if labels.device.type == "mps" else torch.float64
        counts = ~torch.isin(labels, torch.tensor(list(forget_classes), dtype=labels.dtype, device=labels.device))
        if collect is not None:
            collect(states, counts)
        rows = [state.to(dtype) * counts[:, None] for state in states]
        new = [
            torch.stack([row.sum(0), row.square().sum(0), counts.sum().to(dtype).expand(row.shape[1])]) for row in rows
        ]
        sums = new if sums is None else [one + other for one, other in zip(sums, new, strict=True)]
    if sums is None:
        expected = "at least one sample in each process, because states are measured by their deviation"
        raise InvalidInputError("batches", [], expected, "Use at most as many processes as there are samples.")
    return [_deviation(*global_sum(one)) for one in sums]


def _deviation(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    count = count.clamp(min=1)
    deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    size = (squares / count).mean().sqrt()
    # The same token at the start of every sample has one state behind causal attention. What is left of its deviation
    # is rounding, in which a change would count without limit.
    varies = deviation.mean() > _SMALLEST_SHARE * size
    scale = torch.where(varies, deviation.clamp(min=_SMALLEST_SCALE * deviation.mean()), size.expand_as(deviation))
    return torch.where(scale > 0, scale, torch.ones_like(scale)).float()
