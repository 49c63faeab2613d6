"""What trains in a model: the matrices of one adapter, or weights of the model itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..compat import base_of, is_shard, reference_model, unwrapped
from ..errors import InvalidInputError
from ..tuner import LoraGroups, fused_lora, trainable_adapters


class Trained(ABC):
    """What trains in a model, and how to get back to the model before the task.

    Attributes:
        adapter (`str`, *optional*):
            Name of the adapter; `None` if the model's own weights train.
        originals (`Mapping[str, torch.Tensor]`):
            In a run, the tensors that earlier tasks changed, with the values before all tasks, by their names in the
            bare model. A run sets it; they stay on the CPU until [`~Trained.original`] is first used, which copies
            them to the device of the model.
    """

    adapter: str | None = None
    originals: Mapping[str, Tensor] = {}
    model: nn.Module
    _start: list[Tensor]

    @property
    def start(self) -> list[Tensor]:
        """Copies of the tensors before the task, also in a resumed training."""
        pairs = zip(self._start, self.parameters, strict=True)
        self._start = [old.to(now.device) for old, now in pairs]
        return self._start

    @property
    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """The tensors that train."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The group of each of `parameters`, by name."""

    @abstractmethod
    def before(self) -> AbstractContextManager[None]:
        """Returns a context in which the model is the one before the task, in eval mode and without gradient."""

    @contextmanager
    def original(self) -> Iterator[None]:
        """Returns a context as [`~Trained.before`] does, with the model before all tasks of a run.

        Outside a run it is the model before the task.
        """
        with self.before():
            tensors = {name: _tensor_in(self.model, name) for name in self.originals}
            if any(map(is_shard, tensors.values())):
                fix = "Use plain DDP (`accelerate launch --multi_gpu`)."
                expected = "None with a method that compares with the model before all tasks: its weights are shards"
                raise InvalidInputError("fsdp", True, expected, fix)
            self.originals = {name: self.originals[name].to(now.device) for name, now in tensors.items()}
            with _exchanged(list(tensors.values()), list(self.originals.values())):
                yield

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Returns a context in which what trains has its values from before the task, in eval mode, with gradient.

        [`~Trained.before`] takes an adapter off, which then has no gradient.
        """
        with _exchanged(self.parameters, self.start), reference_model(self.model, None), torch.enable_grad():
            yield

    def in_training(self) -> AbstractContextManager[None]:
        """Returns a context in which the training steps of the model are faster; by default they are as ever."""
        return nullcontext()

    def must_learn(self) -> list[nn.Parameter]:
        """Returns the tensors of which at least one must get a gradient at the first step."""
        return self.parameters

    def logs(self) -> dict[str, Tensor]:
        """Returns scalars for the logs, by name, which stay on the device."""
        return {}


class TrainedAdapter(Trained):
    """The one LoRA adapter of a model that trains.

    Args:
        model (`torch.nn.Module`):
            The model. Exactly one adapter trains, and nothing else.

    Attributes:
        groups ([`LoraGroups`]):
            The matrices of the adapter.

    Raises:
        InvalidInputError: If not exactly one adapter trains, or something else does.
    """

    adapter: str

    def __init__(self, model: nn.Module):
        self.model = model
        self.adapter = training_adapter(model)
        self.groups = LoraGroups(model, self.adapter)
        self._start = [matrix.detach().clone() for matrix in self.parameters]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.groups.parameters

    @property
    def names(self) -> list[str]:
        return [self.groups.names[index] for index in self.groups.group_of]

    def before(self) -> AbstractContextManager[None]:
        return reference_model(self.model, self.adapter)

    def in_training(self) -> AbstractContextManager[None]:
        return fused_lora(self.model, self.adapter)

    def must_learn(self) -> list[nn.Parameter]:
        # The two factors of a pair are neighbours. The gradient of `lora_A` is zero while `lora_B` is.
        parameters = self.parameters
        fresh = not any(matrix.detach().any() for matrix in parameters[1::2])
        return parameters[1::2] if fresh else parameters

    def logs(self) -> dict[str, Tensor]:
        norms = {f"group_norm/{name}": norm for name, norm in zip(self.groups.names, self.groups.norms(), strict=True)}
        return {**norms, "active_groups": self.groups.changed().sum(dtype=torch.float32)}


class TrainedWeights(Trained):
    """Weights of the model itself. They change in place, and a copy holds those before the task.

    Args:
        model (`torch.nn.Module`):
            A model without adapters.
        paths (`Iterable[str]`, *optional*):
            The modules whose weights train; all others are frozen. By default every weight with `requires_grad`
            trains.

    Raises:
        InvalidInputError: If the model has adapters, or nothing trains.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str] | None = None):
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise InvalidInputError(
                "model",
                type(model).__name__,
                "a model without adapters, whose own weights train",
                "Pass the base model, or merge its adapters first (merge_and_unload).",
            )
        if paths is not None:
            model.requires_grad_(False)
            for path in paths:
                model.get_submodule(path).requires_grad_(True)
        self.model = model
        self._named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        if not self._named:
            raise InvalidInputError(
                "model", type(model).__name__, "a model with weights that train", "Set requires_grad_(True) on them."
            )
        self._start = [weight.detach().clone() for weight in self.parameters]
        # A BatchNorm whose weights train moves its running statistics, too.
        self._statistics = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [weight for _, weight in self._named]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._named]

    @contextmanager
    def before(self) -> Iterator[None]:
        # By name, because moving a model to a device replaces its buffers.
        buffers = dict(self.model.named_buffers())
        names = [name for name in self._statistics if name in buffers]
        now = [*self.parameters, *(buffers[name] for name in names)]
        old = [*self.start, *(self._statistics[name] for name in names)]
        with _exchanged(now, old), reference_model(self.model, None):
            yield


@contextmanager
def _exchanged(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Gives tensors other values for the time of the block.

    Exchanges the data of the tensors instead of overwriting it, which a later backward pass needs. Autocast keeps its
    casts by the tensor, so that a cast from outside the block would hold other values.
    """
    torch.clear_autocast_cache()
    now = [tensor.data for tensor in tensors]
    for tensor, value in zip(tensors, values, strict=True):
        tensor.data = value.to(tensor.device, tensor.dtype)
    try:
        yield
    finally:
        for tensor, data in zip(tensors, now, strict=True):
            tensor.data = data
        torch.clear_autocast_cache()


def _tensor_in(model: nn.Module, name: str) -> Tensor:
    """Returns a tensor of a model by its name in the bare model, also below layers that PEFT has wrapped."""
    module: nn.Module = base_of(unwrapped(model))
    *path, leaf = name.split(".")
    for part in path:
        module = getattr(_layer_itself(module), part)
    return getattr(_layer_itself(module), leaf)


def _layer_itself(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def training_adapter(model: nn.Module) -> str:
    """Returns the name of the one adapter that trains.

    Args:
        model (`torch.nn.Module`):
            The model.

    Raises:
        InvalidInputError: If not exactly one adapter trains, or other parameters train, which no checkpoint holds.
    """
    adapters = trainable_adapters(model)
    if len(adapters) != 1:
        raise InvalidInputError(
            "adapters that train",
            list(adapters),
            "exactly one LoRA adapter",
            'Wrap the model with get_peft_model(model, GSLoraConfig(...)), or choose one: model.set_adapter("name").',
        )
    known = {id(parameter) for parameter in LoraGroups(model, adapters[0]).parameters}
    if others := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]:
        raise InvalidInputError(
            "parameters that train besides the adapter",
            others,
            "none: forgetting changes the adapter alone, and no checkpoint holds anything else",
            "Freeze them with requires_grad_(False).",
        )
    return adapters[0]
