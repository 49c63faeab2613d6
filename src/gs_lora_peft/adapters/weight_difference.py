"""What a task leaves that changed the weights of the model itself: the new values of the tensors that changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from ..errors import InvalidInputError, short
from ..ledger import WEIGHT_DIFFERENCE, UnusableAdapterError
from .flags import kept_flags

# What reading an invalid file raises; an unknown dtype is a KeyError.
_UNREADABLE = (ValueError, TypeError, LookupError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class WeightDifference:
    """The weights that a task changed.

    The file holds the new values of each tensor that changed in at least one bit; all others are absent. Base model
    and differences, one after another, give the trained weights bit for bit. Adding a floating-point difference would
    round, and a difference of bits could be checked only after it is applied. New values can be checked as they are,
    and need no code of this package: `model.load_state_dict(load_file(path), strict=False)`. The price: they hold what
    earlier tasks did to the same tensors, so that such an earlier task cannot be left out ([`check_separable`]).

    Args:
        name (`str`):
            Name of the task.
        values (`dict[str, Tensor]`):
            Name of a parameter or persistent buffer of the bare model → its new value, on the CPU.
    """

    name: str
    values: dict[str, Tensor]

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of the bare model that change."""
        return list(self.values)

    def without(self, names: Collection[str]) -> WeightDifference:
        """Returns the difference without these tensors, which keeps the memory of none of them."""
        return WeightDifference(self.name, {name: value for name, value in self.values.items() if name not in names})

    def shapes(self) -> WeightDifference:
        """Returns a difference without values, which is enough for [`~WeightDifference.check`]."""
        return WeightDifference(self.name, {name: value.to("meta") for name, value in self.values.items()})

    def check(self, model: nn.Module) -> None:
        """Checks that every value fits a tensor of a bare model, before the model changes.

        Raises:
            UnusableAdapterError: If one does not.
        """
        own = model_tensors(model)
        for name, value in self.values.items():
            if (tensor := own.get(name)) is None:
                problem = f"the model has no tensor {name!r}"
            elif (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
                found, expected = (f"{t.dtype} {list(t.shape)}" for t in (value, tensor))
                problem = f"{name!r} is {found}; expected {expected}"
            else:
                continue
            raise UnusableAdapterError(
                f"the weights of {self.name} do not fit this model: {problem}. Do not use them: this package does not "
                "record such files.",
                task=self.name,
                file=None,
                name=name,
            )

    @torch.no_grad()
    def merge_into(self, model: nn.Module) -> None:
        """Sets the new values in a bare model, which must fit ([`~WeightDifference.check`])."""
        own = model_tensors(model)
        for name, value in self.values.items():
            own[name].detach().copy_(value)


def parsed_difference(path: Path, content: bytes) -> WeightDifference:
    """Reads the weights of a task, which may come from elsewhere.

    Args:
        path (`Path`):
            Folder of the task.
        content (`bytes`):
            Content of its file.

    Raises:
        UnusableAdapterError: If it is not a safetensors file, or holds NaN or infinity.
    """
    name: str | None = None
    try:
        values = load(content)
        problem = None
        for name, value in values.items():
            if value.is_floating_point() and not value.double().isfinite().all():
                problem = f"{name!r} has NaN or infinity; expected finite numbers"
                break
    except _UNREADABLE as error:
        values, problem = {}, str(error) or type(error).__name__
    if problem:
        raise UnusableAdapterError(
            f"the weights in '{path}' are not accepted: {WEIGHT_DIFFERENCE}: {short(problem)}. Do not use them: this "
            "package does not write such files. Fetch a clean copy from a source that you trust.",
            task=path.name,
            file=WEIGHT_DIFFERENCE,
            name=name,
        )
    return WeightDifference(path.name, values)


def write_difference(values: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the new values of the tensors that changed to the folder of a task."""
    save_file(dict(values), folder / WEIGHT_DIFFERENCE, metadata={"format": "pt"})


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and persistent buffers of a bare model, tied ones once, by the first of their names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Returns a parameter or buffer of a bare model by any of its names, without gradient."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf).detach()


def changed_values(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns CPU copies of the tensors of a bare model that differ in any bit from `before`, by name.

    Raises:
        InvalidInputError: If the model has other tensors than before, or others in dtype or shape.
    """
    own = model_tensors(model)
    kinds = [{name: (tensor.dtype, tensor.shape) for name, tensor in of.items()} for of in (own, before)]
    if odd := sorted(name for name in kinds[0].keys() | kinds[1].keys() if kinds[0].get(name) != kinds[1].get(name)):
        raise InvalidInputError(
            "tensors of the trained model", odd, "those of the base model, with their dtypes and shapes"
        )
    values = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in own.items()}
    return {name: value for name, value in values.items() if not _same_bits(value, before[name])}


def difference_groups(
    values: Mapping[str, Tensor], before: Mapping[str, Tensor], trained: Iterable[str]
) -> dict[str, Any]:
    """Describes a difference as the ledger describes the groups of an adapter: every tensor is a group.

    Args:
        values (`Mapping[str, Tensor]`):
            The tensors that changed.
        before (`Mapping[str, Tensor]`):
            All tensors before the task.
        trained (`Iterable[str]`):
            Names of the tensors that trained.

    Returns:
        `dict[str, Any]`: `total`, `active` (names of those that changed), `zero`, `zero_group_ratio`, and `norms`:
        name → Frobenius norm of the change.
    """
    names = list(dict.fromkeys([*trained, *values]))
    active, zero = ([name for name in names if (name in values) is changed] for changed in (True, False))
    norms = {name: float((values[name].double() - before[name].double()).norm()) for name in active}
    ratio = len(zero) / len(names) if names else 0.0
    return {
        "total": len(names),
        "active": active,
        "zero": zero,
        "zero_group_ratio": ratio,
        "norms": {name: norms.get(name, 0.0) for name in names},
    }


@contextmanager
def own_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Lends the weights of a bare model to a training, for the time of a `with` block.

    Afterwards, also after an error, the model is in eval mode, with its former weights, buffers and `requires_grad`
    flags, and without gradients.

    Args:
        model (`torch.nn.Module`):
            The bare model, changed in place.

    Yields:
        `dict[str, Tensor]`: CPU copies of its tensors before the block, by name.
    """
    before = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model_tensors(model).items()}
    unsaved = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in before}
    with kept_flags(model):
        try:
            yield before
        finally:
            model.eval()
            model.zero_grad(set_to_none=True)
            _restore(model, before, unsaved)


@torch.no_grad()
def _restore(model: nn.Module, before: Mapping[str, Tensor], unsaved: Mapping[str, Tensor]) -> None:
    for name, tensor in model_tensors(model).items():
        if name in before and before[name].shape == tensor.shape:
            tensor.detach().copy_(before[name])
    for name, buffer in model.named_buffers():
        if name in unsaved and unsaved[name].shape == buffer.shape:
            buffer.copy_(unsaved[name])


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of a kind hold the same bytes: zeros of either sign differ, and NaNs need not."""
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)))
