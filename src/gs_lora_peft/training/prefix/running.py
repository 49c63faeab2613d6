"""Runs the blocks below the lowest one that trains without graph, and once per sample where that is exact."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Literal, cast

import torch
from accelerate.utils import gather_object
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

from ...compat import bare, is_sharded, reference_model, unwrapped
from ...errors import InvalidInputError
from ...tuner import NoFFNFoundError, find_ffn_blocks
from ..method import TaskTrainer
from .chain import Chain, Link, can_be_cut, read_chain, replaced_forwards, state_in
from .states import Digest, StateStore, digests, kept_generators, random_states

# What a forward does with the prefix: runs it as ever, runs it without graph, keeps its states too, or skips it.
Mode = Literal["plain", "frozen", "fill", "skip"]

# A matrix of the adapter: its layer, itself, and the path of the block around it.
Matrix = tuple[LoraLayer, nn.Parameter, str | None]

logger = logging.get_logger(__name__)


class FrozenPrefix:
    """Saves the work of the blocks below the lowest one that trains, for the time of a training (`with prefix:`).

    Nothing in these blocks trains: sparsity has dropped their groups, or the adapter is not on them. They run without
    graph. Where their output depends on the sample alone, it is computed once per sample and kept, and further
    forwards begin behind them. Forwards of the model before the task use the same states, because the adapter does
    nothing in these blocks.

    What is kept is what an ordinary forward of a batch of that size computed, so that losses are the same bit for bit.
    This is checked while training: a state that comes out differently in another batch, random numbers that are drawn
    below (dropout), a model whose blocks do not hand on one state, or hooks that watch the blocks (as forgetting in
    depth has) end the use of kept states. Samples are told apart by the content of their inputs, so that augmented
    views are never confused. States are dropped when the lowest block that trains changes. Each process has its own,
    and gains by them once it has met most samples.
    Nothing is kept with FSDP, DeepSpeed, `torch.compile` or `DataParallel`, nor with a method that trains weights.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs, with `prefix_cache` and `prefix_cache_mib` in its arguments.

    Attributes:
        block (`int`):
            How many blocks are left out; 0 if none.
        store ([`StateStore`]):
            The states.
        reason (`str`, *optional*):
            Why no states are used; `None` while they may be.
    """

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer
        self._installed = ExitStack()
        self._is_on = False
        self._reset()

    def __enter__(self) -> None:
        self._reset()
        self._is_on = self.trainer.args.prefix_cache != "off" and self.trainer.trained.adapter is not None
        # What arguments and model say is the same in all processes.
        if self.reason is not None and self.trainer.args.prefix_cache == "on":
            raise _demanded(self.reason)

    def __exit__(self, *error: Any) -> None:
        self._is_on = False
        self.release()

    def _reset(self) -> None:
        args = self.trainer.args
        self.block = 0
        self.store = StateStore(int(args.prefix_cache_mib * 2**20))
        self.reason = self._refusal()
        self._blocks: dict[str, nn.Module] = {}  # of the bare model, once they are needed
        self._matrices: list[Matrix] = []
        self._chain: Chain | None = None
        self._live: frozenset[str] | None = None  # paths of the blocks that train, if there are others below
        self._batch: dict[str, Tensor] | None = None
        self._digests: list[Digest] | None = None
        self._mode: Mode = "plain"
        self._verified: set[Hashable] = set()
        self._kinds: set[Hashable] = set()  # forwards that states were kept of

    def _refusal(self) -> str | None:
        trainer, args = self.trainer, self.trainer.args
        checks = {
            "it is switched off": args.prefix_cache == "off",
            "weights of the model train": trainer.trained.adapter is None,
            "every epoch trains on new views": args.augmentation,
            "the samples to keep come as a stream": trainer.train_dataset.streams,
            "the model is compiled": bool(args.torch_compile),
            "the model is replicated in one process": args.n_gpu > 1,
            "the model is sharded": is_sharded(bare(trainer.model)),
        }
        return next((reason for reason, holds in checks.items() if holds), None)

    def release(self) -> None:
        """Gives the model its own forward back, and drops all states."""
        self._installed.close()
        self.store.clear()
        self.block = 0

    # Which blocks

    @contextmanager
    def of_batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Lets the forwards of one joint batch in the block use the prefix.

        Args:
            model (`torch.nn.Module`):
                The model as the trainer calls it.
            inputs (`Mapping[str, Any]`):
                The joint batch with `labels`.
        """
        if not self._is_on or "labels" not in inputs:  # without labels the objective says what is missing
            yield
            return
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"}
        self._follow(unwrapped(model), inputs, tensors)
        self._batch = tensors if self.block else None
        self._rows = len(inputs["labels"])
        self._digests = None
        self._others = {name: value for name, value in inputs.items() if name not in tensors and name != "labels"}
        self._versions = {name: tensor._version for name, tensor in tensors.items()}
        try:
            yield
        finally:
            self._batch = None
        self._refuse_together()

    def _follow(self, model: nn.Module, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Finds the blocks that do not train, if others than at the last batch."""
        live = self._blocks_that_train(model)
        if live == self._live:
            return
        self._live = live
        if live is None or self.reason is not None:
            self.release()
            return
        given = {name: value for name, value in inputs.items() if name != "labels"}
        rows = len(inputs["labels"])

        def forward() -> Any:
            return model(**given)

        with kept_generators(self.trainer.args.device), reference_model(model, None):
            if self._chain is None:
                self._chain = read_chain(model, self._blocks, forward, rows)
            # Blocks outside the chain are called after it.
            places = {id(link.module): place for place, link in enumerate(self._chain.blocks)}
            end = len(self._chain.blocks)
            block = min(places.get(id(self._blocks[path]), end) for path in live)
            if block == self.block > 0:
                return
            self.release()
            if block == 0 or not can_be_cut(model, self._chain, block, forward):
                self._refuse("the model's blocks do not hand on one state, one after another")
                return
        self._install(model, block)

    def _blocks_that_train(self, model: nn.Module) -> frozenset[str] | None:
        """Paths of the blocks in which the adapter acts; `None` if the first one is among them, or others act."""
        adapter = self.trainer.trained.adapter
        if not self._matrices:
            self._blocks, self._matrices = _read_blocks(model, adapter)
        live = {
            path
            for layer, parameter, path in self._matrices
            if parameter.requires_grad or adapter in layer.active_adapters
        }
        if not live or None in live or next(iter(self._blocks), None) in live:
            return None
        return frozenset(path for path in live if path is not None)

    def _install(self, model: nn.Module, block: int) -> None:
        assert self._chain is not None
        self.block, self._model = block, model
        links = self._chain.below(block)
        last = links[-1].module
        forwards = {link.module: self._forward_of(link, link.module is last) for link in links}
        self._below = [module for link in links for module in link.module.modules()]
        other = {id(tensor) for link in self._chain.blocks[block:] for tensor in link.module.parameters()}
        other |= {id(matrix) for _, matrix, _ in self._matrices}
        # All that a state may depend on, and more: a method may exchange weights for the time of a forward.
        self._weights = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in other]
        self._layers = [module for module in self._below if isinstance(module, LoraLayer)]
        self._owned = [
            (m._parameters, name, p) for m in self._below for name, p in m._parameters.items() if p is not None
        ]
        self._verified.clear()
        self._installed.enter_context(replaced_forwards(forwards))
        begin = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._installed.callback(begin.remove)
        self._installed.callback(model.register_forward_hook(self._end, always_call=True).remove)

    def _refuse(self, reason: str) -> None:
        """Uses no states from now on.

        Raises:
            InvalidInputError: If the arguments demand them, in a single process. Of several, each goes on to the end
                of its batch, where the refusal of one is that of all.
        """
        self.reason = reason
        self.store.clear()
        if self.trainer.args.prefix_cache == "on" and self.trainer.args.world_size == 1:
            raise _demanded(reason)
        if self.block:
            logger.info(f"The outputs of frozen blocks are not kept: {reason}.")

    def _refuse_together(self) -> None:
        """Raises in every process if one has refused: the others would wait for its gradients for ever."""
        args = self.trainer.args
        if args.prefix_cache != "on" or args.world_size == 1:
            return
        refused = torch.tensor(float(self.reason is not None), device=args.device)
        if self.trainer.global_mean(refused):
            reasons = [reason for reason in gather_object([self.reason]) if reason is not None]
            raise _demanded(reasons[0])

    # In a forward

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Chooses the mode of one forward."""
        self._mode = "plain"
        if self._batch is None or model is not self._model:
            return
        if any(now[name] is not parameter for now, name, parameter in self._owned):  # functional_call put others there
            return
        rows = None if args else self._rows_in(kwargs)
        if rows is None:
            return
        self._mode = "frozen"
        if self.reason is not None or self._is_watched():
            return
        others = _single_values(self._others)
        if others is None:
            self._refuse("a batch holds inputs that are neither tensors nor single values")
            return
        if self._digests is None:
            self._digests = digests(self._batch, self._rows)
        found: list[Digest] = self._digests[rows]
        device = next(iter(self._batch.values())).device
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        state = (self._signature(), len(found), autocast, others)
        self._kind = (state, self._below[-1].training)
        self._keys = [(state, digest) for digest in found]
        if self._kind in self._verified and self.store.holds(self._keys):
            self._mode, self._state = "skip", self.store.get(self._keys)
        else:
            self._mode, self._drawn = "fill", random_states(device)

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._mode = "plain"

    def _rows_in(self, kwargs: Mapping[str, Any]) -> slice | None:
        """Which rows of the batch a forward gets; `None` if it gets anything but consecutive rows as they are."""
        assert self._batch is not None
        inputs = {name: value for name, value in kwargs.items() if value is not None and name != "labels"}
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in inputs.items() if name not in given}
        same = others.keys() == self._others.keys() and all(others[name] is self._others[name] for name in others)
        if not same or given.keys() != self._batch.keys():
            return None
        found = {_rows_of(given[name], self._batch[name], self._rows) for name in given}
        changed = any(tensor._version != self._versions[name] for name, tensor in self._batch.items())
        found.discard((-1, -1))  # what belongs to the whole batch
        if changed or len(found) != 1 or None in found:
            return None
        return slice(*found.pop())  # type: ignore[misc]

    def _is_watched(self) -> bool:
        """Whether a hook would miss calls. The one of a BatchNorm keeps it in eval mode."""
        return any(
            module._forward_hooks or (module._forward_pre_hooks and not isinstance(module, _BatchNorm))
            for module in self._below
        )

    def _signature(self) -> Hashable:
        """What a state depends on besides the sample: weights and adapters."""
        weights = hash(tuple((tensor.data_ptr(), tensor._version) for tensor in self._weights))
        return weights, hash(tuple(name for layer in self._layers for name in layer.active_adapters))

    def _forward_of(self, link: Link, is_last: bool) -> Any:
        original = link.module.forward

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not link.module:  # in a copy of the model
                return type(module).forward(module, *args, **kwargs)
            if self._mode == "skip":
                return link.output(self._state)
            if self._mode == "plain" or any(isinstance(value, Tensor) and value.requires_grad for value in args):
                return original(*args, **kwargs)
            with torch.no_grad():
                output = original(*args, **kwargs)
            if is_last and self._mode == "fill":
                self._keep(state_in(output))
            return output

        # A method, which a deep copy of the model binds to the copy of the module.
        return MethodType(forward, link.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPrefix:
        # A copy of the model has hooks that lead here; they leave it alone.
        return self

    def _keep(self, state: Tensor | None) -> None:
        if state is None or len(state) != len(self._keys):
            self._refuse("its blocks do not return one state for each sample")
        elif random_states(state.device) != self._drawn:
            self._refuse("its lower blocks draw random numbers, such as dropout")
        elif not self._has_room(state):
            needed = self._expected(state) / 2**20
            self._refuse(f"the states need {needed:.0f} MiB, more than `prefix_cache_mib`")
        elif 0 < self._samples * len(self._kinds | {self._kind[0]}) < len(self.store):
            self._refuse("samples come as new views each time")
        else:
            self._kinds.add(self._kind[0])
            known = self.store.holds(self._keys)
            if not self.store.add(self._keys, state):
                self._refuse("a state depends on the batch that the sample is in")
            elif known:
                self._verified.add(self._kind)

    def _has_room(self, state: Tensor) -> bool:
        return not self.store.is_full and self._expected(state) <= self.store.limit

    @property
    def _samples(self) -> int:
        pairs = self.trainer.train_dataset
        return sum(len(part) for part in (pairs.retain, pairs.forget) if hasattr(part, "__len__"))

    def _expected(self, state: Tensor) -> int:
        """The bytes of the states of all samples, which every process may get; of a stream, of those so far."""
        return max(self._samples * state[0].numel() * state.element_size(), self.store.size)


def _read_blocks(model: nn.Module, adapter: str | None) -> tuple[dict[str, nn.Module], list[Matrix]]:
    """The blocks of a model by path, and the matrices of an adapter."""
    own = bare(model)
    try:
        blocks = {path: own.get_submodule(path) for path in find_ffn_blocks(own)}
    except NoFFNFoundError:
        blocks = {}
    inside = {id(parameter): path for path, module in blocks.items() for parameter in module.parameters()}
    if adapter is None:
        return blocks, []
    layers = [layer for layer in own.modules() if isinstance(layer, LoraLayer) and adapter in layer.lora_A]
    pairs = [(layer, cast(nn.Linear, kind[adapter])) for layer in layers for kind in (layer.lora_A, layer.lora_B)]
    found = [(layer, cast(nn.Parameter, factor.weight)) for layer, factor in pairs]
    return blocks, [(layer, matrix, inside.get(id(matrix))) for layer, matrix in found]


def _demanded(reason: str) -> InvalidInputError:
    fix = "Leave it out: 'auto' uses it where it can."
    return InvalidInputError("prefix_cache", "on", f"'auto' or 'off', because {reason}", fix)


def _single_values(inputs: Mapping[str, Any]) -> Hashable | None:
    """What tells inputs apart that belong to the whole batch, such as a flag; `None` if they may hold more."""
    if not all(value is None or isinstance(value, (bool, int, float, str)) for value in inputs.values()):
        return None
    return tuple(sorted((name, repr(value)) for name, value in inputs.items()))


def _rows_of(given: Tensor, whole: Tensor, rows: int) -> tuple[int, int] | None:
    """First and last row of a view into a batch; (-1, -1) for a tensor that belongs to no single sample."""
    if whole.shape[:1] != (rows,):
        return (-1, -1) if given is whole else None
    if given is whole:
        return 0, rows
    same = given.device == whole.device and given.dtype == whole.dtype and given.stride() == whole.stride()
    step = whole.stride(0) * whole.element_size()
    if not same or given.shape[1:] != whole.shape[1:] or given.requires_grad or not step:
        return None
    start, rest = divmod(given.data_ptr() - whole.data_ptr(), step)
    if rest or start < 0 or start + len(given) > rows:
        return None
    return start, start + len(given)
