"""Finds blocks that hand one state on, one after another, so that the lower ones can be left out of a forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...compat import bare, reference_model

Forward = Callable[[], Any]


@dataclass(frozen=True)
class Link:
    """A module that takes part in a chain.

    Args:
        module (`torch.nn.Module`):
            The module.
        rest (sequence, *optional*):
            What it returns behind the state; `None` if it returns the state alone.
    """

    module: nn.Module
    rest: Sequence[Any] | None

    def output(self, state: Tensor) -> Any:
        """What the module returns with this state."""
        return state if self.rest is None else type(self.rest)([state, *self.rest])  # type: ignore[call-arg]


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward; all tensors are kept, so that none takes the place of another one."""

    module: nn.Module
    given: Any  # its first positional argument
    returned: Any


@dataclass(frozen=True)
class Chain:
    """The blocks of a model that follow one another, in the order of their calls.

    Args:
        source ([`Link`], *optional*):
            The module whose output the first block gets, such as the embeddings; `None` if there is none.
        blocks (`Sequence[Link]`):
            The blocks: each gets the output of the one before as its first argument.
    """

    source: Link | None
    blocks: Sequence[Link]

    def below(self, block: int) -> list[Link]:
        """The modules whose work is done once the state before this block is known."""
        return [*([self.source] if self.source else []), *self.blocks[:block]]


def state_in(output: Any) -> Tensor | None:
    """The one tensor in the output of a block: the output itself, or the first of several of which no other counts."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0] if all(item is None for item in output[1:]) else None
    return None


def link_of(call: Call) -> Link:
    """The link of a module that was called once."""
    return Link(call.module, None if isinstance(call.returned, Tensor) else call.returned[1:])


def read_chain(model: nn.Module, blocks: Mapping[str, nn.Module], forward: Forward, rows: int) -> Chain:
    """Finds the chain at the beginning of a forward.

    Args:
        model (`torch.nn.Module`):
            The model, in eval mode.
        blocks (`Mapping[str, torch.nn.Module]`):
            Its blocks by path in the bare model.
        forward (`Callable`):
            Runs one forward.
        rows (`int`):
            Number of samples in it.

    Returns:
        [`Chain`]: Without blocks if the first block is called twice, does not take one state, or returns more.
    """
    inside = tuple(f"{path}." for path in blocks)
    of_block = {id(module) for module in blocks.values()}
    watched = [module for path, module in bare(model).named_modules() if path and not path.startswith(inside)]
    calls = recorded_calls(watched, forward)
    counts = Counter(id(call.module) for call in calls)
    found: list[Call] = []
    for call in (call for call in calls if id(call.module) in of_block):
        state = state_in(call.returned)
        follows = not found or call.given is state_in(found[-1].returned)
        if not follows or counts[id(call.module)] > 1 or state is None or state.shape[:1] != (rows,):
            break
        found.append(call)
    links = [link_of(call) for call in found]
    before = [call for call in calls if found and state_in(call.returned) is found[0].given]
    source = before[-1] if before and isinstance(found[0].given, Tensor) else None
    return Chain(link_of(source) if source and counts[id(source.module)] == 1 else None, links)


def recorded_calls(modules: Sequence[nn.Module], forward: Forward) -> list[Call]:
    """The calls of modules in one forward, in the order in which they end."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append(Call(module, args[0] if args else None, output))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        forward()
    return calls


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Gives modules another forward for the time of the block."""
    own = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, former in own.items():
            if former is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = former


def can_be_cut(model: nn.Module, chain: Chain, block: int, forward: Forward) -> bool:
    """Whether a forward that leaves out all before a block, and gets the state instead, returns the same.

    Args:
        model (`torch.nn.Module`):
            The model.
        chain ([`Chain`]):
            Its chain.
        block (`int`):
            The first block that is not left out.
        forward (`Callable`):
            Runs one forward.

    Returns:
        `bool`: `False` also if something besides the next block reads what the blocks return.
    """
    last = chain.blocks[block - 1].module
    with reference_model(model, None):
        whole: list[Tensor] = []

        def run() -> None:
            whole.extend(tensors_in(forward()))

        state = state_in(recorded_calls([last], run)[0].returned)
        if state is None:
            return False
        try:
            with replaced_forwards({link.module: returning(link.output(state)) for link in chain.below(block)}):
                cut = tensors_in(forward())
        except (RuntimeError, TypeError, ValueError, IndexError):  # the rest of the model needs another shape
            return False
    pairs = zip(whole, cut, strict=False)
    return len(whole) == len(cut) > 0 and all(torch.equal(one, other) for one, other in pairs)


def returning(output: Any) -> Callable[..., Any]:
    """A forward that returns what is known."""
    return lambda *args, **kwargs: output


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors in the output of a model."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_in(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in tensors_in(value)]
    return []
