"""Tasks on a quantised model: their adapters stay beside weights that could take them up only with a rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import PEFT_PREFIX, quantised_part
from ..errors import InvalidInputError
from ..ledger import ForgettingLedger
from .merging import MergedModel, check_changes
from .task_adapter import TaskAdapter
from .task_files import TaskChange, read_changes


class LowRankUpdates:
    """A forward hook that adds what adapters add to the output of a Linear, in the order and the arithmetic of PEFT.

    Attributes:
        factors (`list[tuple[torch.Tensor, torch.Tensor, float]]`):
            Of each adapter `lora_A` of shape `(rank, inputs)`, `lora_B` of shape `(outputs, rank)`, and their scaling.
    """

    def __init__(self) -> None:
        self.factors: list[tuple[Tensor, Tensor, float]] = []

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,), result = given, output
        if self.factors and self.factors[0][0].device != x.device:
            self.factors = [(a.to(x.device), b.to(x.device), scaling) for a, b, scaling in self.factors]
        for a, b, scaling in self.factors:
            x = x.to(a.dtype)
            result = result + F.linear(F.linear(x, a), b) * scaling
        return result.to(output.dtype)


class AttachedModel(MergedModel):
    """A bare quantised model with the tasks of a run beside its weights, which never change.

    Each layer adds the updates of all tasks to its output ([`LowRankUpdates`]), so that a step costs two small
    products more for every task. The outputs equal bit for bit those of the adapters that [`attach_adapters`]
    attaches.

    The weights alone are those of the model that remembers. While tasks are attached, `save_pretrained`,
    `push_to_hub` and `state_dict` of the model, of its parts and of copies therefore raise [`InvalidInputError`],
    also where a trainer or a pipeline calls them. Within a `PeftModel` `state_dict` works: PEFT takes its adapter
    from it.

    Args:
        model (`torch.nn.Module`):
            The base model, changed in place and put into eval mode.
        ledger ([`ForgettingLedger`]):
            The ledger of the run. Its tasks in effect are attached.
    """

    def __init__(self, model: nn.Module, ledger: ForgettingLedger):
        self._attached: list[TaskAdapter] = []
        self._hooks: list[Any] = []
        super().__init__(model, ledger)

    def rebuild(self, names: Sequence[str]) -> None:
        """Attaches these tasks instead, see [`~MergedModel.merge`]."""
        changes = read_changes(self.ledger, list(names), each=False)
        self._attach(self._adapters(changes))

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Attaches the same adapters as before if the block fails."""
        before = self._attached
        try:
            yield
        except BaseException:
            self._attach(before)
            raise

    @contextmanager
    def without_tasks(self) -> Iterator[None]:
        """Detaches all adapters for the time of a `with` block."""
        before = self._attached
        try:
            self._attach([])
            yield
        finally:
            self._attach(before)

    def _merge(self, changes: Sequence[TaskChange]) -> None:
        self._attach([*self._attached, *self._adapters(changes)])

    def _adapters(self, changes: Sequence[TaskChange]) -> list[TaskAdapter]:
        check_changes(self.bare, changes)
        adapters = [change for change in changes if isinstance(change, TaskAdapter)]
        if len(adapters) < len(changes):
            expected = "weights that are not quantised, because a task of the run left new values of weights"
            raise InvalidInputError("base_model", type(self.bare).__name__, expected, "Load it without quantisation.")
        return adapters

    def _attach(self, adapters: Sequence[TaskAdapter]) -> None:
        for hook in self._hooks:
            hook.remove()
        updates: dict[str, LowRankUpdates] = {}
        for adapter in adapters:
            for path, (a, b) in adapter.pairs.items():
                layer: Any = self.bare.get_submodule(path)
                device = layer.weight.device
                factors = a.to(device), b.to(device), adapter.scaling(path)
                updates.setdefault(path, LowRankUpdates()).factors.append(factors)
        self._hooks = []
        for path, own in updates.items():
            layer = self.bare.get_submodule(path)
            self._hooks += [layer.register_forward_hook(own), layer.register_state_dict_pre_hook(_no_state_alone)]
        for name in _SAVING:  # sooner than `state_dict`: before a folder or a repository is made
            if updates:
                setattr(self.bare, name, _no_saving)
            else:
                vars(self.bare).pop(name, None)
        self._attached = list(adapters)


_SAVING = ("save_pretrained", "push_to_hub")


def _no_saving(*args: Any, **kwargs: Any) -> NoReturn:
    """Takes the place of methods that write the weights of a model."""
    raise InvalidInputError(
        "model",
        "a quantised model with tasks beside its weights",
        "a model whose weights have forgotten: these alone remember what the tasks forgot",
        "Publish the run with gs_lora_peft.push_to_hub(folder, ...), and load it with load_forgotten; or forget on "
        "the model that is not quantised, and write a full model with merge_forgotten.",
    )


def _no_state_alone(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Refuses `state_dict` of a layer with tasks beside its weights, unless the layer is within a `PeftModel`."""
    if PEFT_PREFIX not in prefix:
        _no_saving()


def updates_beside(model: nn.Module) -> dict[str, Tensor]:
    """Returns what tasks add beside the weights of a bare model ([`AttachedModel`]), by names of its own.

    Args:
        model (`torch.nn.Module`):
            The model.

    Returns:
        `dict[str, torch.Tensor]`: Matrices and scalings; empty unless the model is quantised and has tasks.
    """
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, LowRankUpdates):
                for number, (a, b, scaling) in enumerate(hook.factors):
                    name = f"{path}.{number}"
                    found |= {f"{name}.A": a, f"{name}.B": b, f"{name}.scaling": torch.tensor(scaling)}
    return found


def with_tasks(model: nn.Module, ledger: ForgettingLedger) -> MergedModel:
    """Puts the tasks of a run into a bare model: into its weights, or beside them if it is quantised.

    Args:
        model (`torch.nn.Module`):
            The base model, changed in place.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
    """
    return (AttachedModel if quantised_part(model) else MergedModel)(model, ledger)
