"""The groups of one adapter: their norms, penalty and proximal step, and which of them are exactly zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checking import checked
from ..compat import activate, base_of
from ..errors import InvalidInputError
from .blocks import find_blocks_of
from .config import GroupBy

GroupScale = Literal["sqrt_size", "none"]


class LoraGroups:
    """The LoRA matrices of one adapter, in groups that are kept or dropped together.

    By default group g is every LoRA matrix of one Transformer block (symbol 𝓖_g in GS-LoRA,
    https://arxiv.org/abs/2403.11530, eq. 7). All arithmetic runs in `torch._foreach` kernels on the device of the
    matrices, in float32 whatever their dtype. Only the methods that return Python values synchronise with the host:
    `zero_groups`, `active_groups`, `zero_group_ratio`, `state` and `freeze_zero_groups`.

    The model may be a `PeftModel`, a tuner, or a model that `inject_adapter_in_model` or transformers' `add_adapter`
    has changed.

    Args:
        model (`torch.nn.Module`):
            A model that holds the adapter.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            The adapter.
        group_by (`"block"`, `"module"` or `"matrix"`, *optional*):
            The unit that is kept or dropped. By default that of the adapter's [`GSLoraConfig`], or `"block"` without
            one.

    Attributes:
        names (`list[str]`):
            Block paths, module paths, or `"<module path>.lora_A"` / `".lora_B"`, in module order. With `"matrix"`, a
            matrix is dropped together with its partner, without which it has no effect.
        sizes (`list[int]`):
            Number of entries of each group.
        parameters (`list[torch.nn.Parameter]`):
            The matrices; `group_of[i]` is the group of `parameters[i]`.

    Raises:
        InvalidInputError: If the model holds no LoRA matrices of that adapter, or `group_by` is unknown.
    """

    def __init__(self, model: nn.Module, adapter_name: str = "default", group_by: str | None = None):
        base = base_of(model)
        layers = {
            path: module
            for path, module in base.named_modules()
            if isinstance(module, LoraLayer) and adapter_name in module.lora_A
        }
        if not layers:
            known = sorted({name for m in base.modules() if isinstance(m, LoraLayer) for name in m.lora_A})
            expected = f"one of {known}" if known else "an adapter of the model, which has none"
            fix = "Wrap it with get_peft_model(model, GSLoraConfig(...))." if not known else ""
            raise InvalidInputError("adapter_name", adapter_name, expected, fix)
        config = getattr(model, "peft_config", {}).get(adapter_name)
        grouping: GroupBy = checked("group_by", group_by or getattr(config, "group_by", "block"), GroupBy)

        self.adapter_name = adapter_name
        self._factors: list[Any] = []
        self.group_of: list[int] = []
        self._layers = layers
        self._groups_of_layer: dict[str, set[int]] = {}
        blocks = find_blocks_of(base, list(layers)) if grouping == "block" else {}
        index_of: dict[str, int] = {}
        for path, layer in layers.items():
            self._groups_of_layer[path] = set()
            for kind in ("lora_A", "lora_B"):
                group = {"block": blocks.get(path, path), "module": path, "matrix": f"{path}.{kind}"}[grouping]
                index = index_of.setdefault(group, len(index_of))
                self._factors.append(getattr(layer, kind)[adapter_name])
                self.group_of.append(index)
                self._groups_of_layer[path].add(index)
        self.names: list[str] = list(index_of)
        self.sizes = [0] * len(self.names)
        self._members: list[list[int]] = [[] for _ in self.names]
        for position, (parameter, index) in enumerate(zip(self.parameters, self.group_of, strict=True)):
            self.sizes[index] += parameter.numel()
            self._members[index].append(position)
        # With `"matrix"`, the two groups of a pair are neighbours. Otherwise each group is its own partner.
        self._partner_of = [index ^ 1 if grouping == "matrix" else index for index in range(len(self.names))]
        self._frozen: set[int] = set()
        self._thawed_flags: dict[int, bool] = {}
        self._skipping: dict[str, tuple[list[str], list[str]]] = {}
        self._device: torch.device | None = None
        self._dropped: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The matrices."""
        # Read again each time: loading with `low_cpu_mem_usage` replaces parameters.
        return [factor.weight for factor in self._factors]

    def __len__(self) -> int:
        return len(self.names)

    def _prepare(self) -> None:
        """Creates index tensors on the device of the matrices, again if the model has been moved."""
        parameters = self.parameters
        device = parameters[0].device
        if self._device == device:
            return
        known = self._device is not None and self._device.type != "meta"
        self._dropped = (self._dropped if known else torch.zeros(len(self), dtype=torch.bool)).to(device)
        self._device = device
        self._index = torch.tensor(self.group_of, device=device)
        self._partners = torch.tensor(self._partner_of, device=device)
        # Row g lists the matrices of group g, padded with the index of an extra zero. Summed along the row, a group's
        # norm does not depend on the order in which an accelerator's threads finish.
        longest, extra = max(map(len, self._members)), len(parameters)
        rows = [row + [extra] * (longest - len(row)) for row in self._members]
        self._rows = torch.tensor(rows, device=device)
        self._sqrt_sizes = torch.tensor(self.sizes, dtype=torch.float32, device=device).sqrt()
        self._several_devices = any(p.device != device for p in parameters)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Returns the Frobenius norm of each group: (Σ_{p∈g} ‖p‖²_F)^½.

        This is the norm that is penalised, not the sum of the norms of matrices. A group with a positive norm may
        still change nothing, see [`~LoraGroups.changed`].

        Returns:
            `torch.Tensor`: float32, shape `(number of groups,)`, on the device of the first matrix.
        """
        squares = nn.functional.pad(self._matrix_norms().square_(), (0, 1))
        return squares[self._rows].sum(dim=1).sqrt_()

    @torch.no_grad()
    def changed(self) -> Tensor:
        """Whether each group changes the model: in at least one of its LoRA pairs neither factor is entirely zero.

        A new adapter changes nothing, because every `lora_B` is zero. Wherever groups are counted, "active" means
        this. [`export_lora`] writes the pairs that change the model.

        Returns:
            `torch.Tensor`: Bool, shape `(number of groups,)`, on the device of the first matrix.
        """
        # The largest entry counts, because the square of a small one may be zero. The factors of a pair are
        # neighbours.
        both = (self._matrix_norms(math.inf) != 0).view(-1, 2).all(dim=1)
        alive = nn.functional.pad(both.repeat_interleave(2), (0, 1))
        return alive[self._rows].any(dim=1)

    def _matrix_norms(self, order: float = 2) -> Tensor:
        self._prepare()
        data = [p.detach() for p in self.parameters]
        if any(p.dtype == torch.float64 for p in data):  # the kernel does not convert it to float32
            matrix_norms = [norm.float() for norm in torch._foreach_norm(data, order)]
        else:
            matrix_norms = list(torch._foreach_norm(data, order, dtype=torch.float32))
        if self._several_devices:
            matrix_norms = [norm.to(self._device, non_blocking=True) for norm in matrix_norms]
        return torch.stack(matrix_norms)

    def penalty(self) -> Tensor:
        """Returns the group lasso Σ_g ‖g‖ (eq. 7 of the paper, without α), differentiable.

        The gradient is p / ‖g‖, and 0 if ‖g‖ = 0, the subgradient with the smallest norm. The published code gives NaN
        there.

        Returns:
            `torch.Tensor`: float32 scalar.
        """
        return _GroupLasso.apply(self, *self.parameters)

    @torch.no_grad()
    def proximal_step(self, step: float | Tensor, scale: GroupScale = "sqrt_size", keep_last: bool = False) -> None:
        """Takes one step of proximal gradient descent on the group lasso, in place.

        g ← max(0, 1 − t_g / ‖g‖) · g with t_g = `step` · √n_g (`scale="sqrt_size"`) or `step` (`scale="none"`). A
        group that has reached zero stays exactly zero, even if momentum would move it away again.

        Args:
            step (`float` or `torch.Tensor`):
                Learning rate of the optimizer's last step, times the sparsity weight α. A tensor may hold one value
                per group.
            scale (`"sqrt_size"` or `"none"`, *optional*, defaults to `"sqrt_size"`):
                With √n_g, the root of the number of entries of the group, α is compared with the movement of one
                *entry*. An Adam step moves a group of n entries by up to lr · √n, so that one α suits models of every
                size.
            keep_last (`bool`, *optional*, defaults to `False`):
                Whether the group with the largest ‖g‖ / t_g stays as it is if the step would drop every group that is
                left. With `"matrix"`, its partner stays too. A single group that is left is not shrunk either.

        Raises:
            InvalidInputError: If `step` is a negative or non-finite number, or `scale` is unknown. The values of a
                tensor are not checked, because this needs a host synchronisation.
        """
        checked("scale", scale, GroupScale)
        if not isinstance(step, Tensor) and not 0.0 <= step < math.inf:
            raise InvalidInputError("step", step, "a finite number of at least 0: learning rate times α")
        norms = self.norms()
        sizes = self._sqrt_sizes if scale == "sqrt_size" else torch.ones_like(norms)
        threshold = sizes * step
        # A step of 0 drops nothing, not even groups that are zero because they have not been trained. A NaN norm is
        # not dropped, and stays NaN.
        dropped = self._dropped | ((norms <= threshold) & (threshold > 0))
        dropped = dropped | dropped[self._partners]
        factors = 1.0 - threshold / torch.where(norms == 0, 1.0, norms)
        if keep_last:
            strongest = self._strongest(norms / sizes)
            alone = ~(~self._dropped & ~strongest).any()
            spared = strongest & (alone | dropped.all())
            dropped, factors = dropped & ~spared, torch.where(spared, 1.0, factors)
        self._dropped = dropped
        self._scale_matrices(torch.where(dropped, 0.0, factors)[self._index])

    def _strongest(self, strengths: Tensor) -> Tensor:
        """Whether each group is the one with the largest strength among those that are left, or its partner."""
        # The weaker matrix of a pair counts.
        strengths = torch.minimum(strengths, strengths[self._partners]).masked_fill(self._dropped, -1.0)
        strongest = torch.arange(len(self), device=strengths.device) == strengths.argmax()
        return (strongest | strongest[self._partners]) & ~self._dropped

    def _scale_matrices(self, factors: Tensor) -> None:
        data = [p.detach() for p in self.parameters]
        per_matrix = [f.to(p.device, p.dtype) for f, p in zip(factors.unbind(), data, strict=True)]
        torch._foreach_mul_(data, per_matrix)

    def zero_groups(self) -> list[str]:
        """Returns the names of the groups that change nothing, see [`~LoraGroups.changed`].

        Needs one host synchronisation.
        """
        return [name for name, changed in zip(self.names, self.changed().tolist(), strict=True) if not changed]

    def active_groups(self) -> list[str]:
        """Returns the names of the groups that change the model, see [`~LoraGroups.changed`].

        Needs one host synchronisation.
        """
        zero = set(self.zero_groups())
        return [name for name in self.names if name not in zero]

    def zero_group_ratio(self) -> float:
        """Returns the share of groups that change nothing, in [0, 1]. Needs one host synchronisation."""
        return len(self.zero_groups()) / len(self)

    def freeze_zero_groups(self, is_zero: Sequence[bool] | None = None) -> list[str]:
        """Stops training groups with norm 0, and skips their LoRA pairs in the forward.

        A group whose `lora_A` is not zero keeps training, even if every `lora_B` is zero: this is how training starts.
        A frozen matrix gets no gradient. A LoRA pair with a frozen factor is left out of its layer's forward, so that
        it costs nothing. `thaw` undoes both. Call this again after the adapter has been activated again
        (`set_adapter`). With `"matrix"`, a `lora_B` is left alone if it is zero only because its `lora_A` has not been
        trained.

        Args:
            is_zero (`Sequence[bool]`, *optional*):
                `norms() == 0` on the host. Without it, one host synchronisation is needed.

        Returns:
            `list[str]`: The groups frozen by this call.
        """
        self._prepare()
        if is_zero is None:
            is_zero = [norm == 0.0 for norm in self.norms().tolist()]
        zero = {index for index, partner in enumerate(self._partner_of) if is_zero[index] and is_zero[partner]}
        new = sorted(zero - self._frozen)
        if new:
            self._dropped = self._dropped | torch.tensor([i in zero for i in range(len(self))], device=self._device)
            self._frozen |= set(new)
        for position, (parameter, group) in enumerate(zip(self.parameters, self.group_of, strict=True)):
            if group in self._frozen and (parameter.requires_grad or group in new):
                self._thawed_flags.setdefault(position, parameter.requires_grad)
                parameter.requires_grad_(False)
                parameter.grad = None
        for path, groups in self._groups_of_layer.items():
            layer = self._layers[path]
            if groups & self._frozen and self.adapter_name in layer.active_adapters:
                before = list(layer.active_adapters)
                skipping = [name for name in before if name != self.adapter_name]
                activate(layer, skipping)
                self._skipping[path] = (before, skipping)
        return [self.names[index] for index in new]

    def thaw(self) -> None:
        """Undoes `freeze_zero_groups`: frozen groups act in the forward again, and their matrices train as before.

        Zero groups stay zero until training goes on. The model is an ordinary PEFT model again, for example to load
        other weights into the adapter.
        """
        parameters = self.parameters
        for position, requires_grad in self._thawed_flags.items():
            parameters[position].requires_grad_(requires_grad)
        for path, (before, skipping) in self._skipping.items():
            now = self._layers[path].active_adapters
            # Another list: other code has chosen adapters. A shorter one: an adapter was deleted.
            if now is skipping or set(now) < set(skipping):
                activate(self._layers[path], [n for n in before if n in now or n == self.adapter_name])
        self._skipping.clear()
        self._frozen.clear()
        self._thawed_flags.clear()
        if self._device is not None:
            self._dropped = torch.zeros_like(self._dropped)

    def state(self) -> dict[str, Any]:
        """Returns the groups for a log or a ledger. Needs one host synchronisation.

        Returns:
            `dict[str, Any]`: `{"total": int, "active": [names], "zero": [names], "zero_group_ratio": float}`. A group
            is active if it changes the model, see [`~LoraGroups.changed`], and zero otherwise.
        """
        zero = self.zero_groups()
        active = [name for name in self.names if name not in set(zero)]
        return {"total": len(self), "active": active, "zero": zero, "zero_group_ratio": len(zero) / len(self)}


class _GroupLasso(torch.autograd.Function):
    """Σ_g ‖g‖ with its own gradient, which is finite at 0 and runs in foreach kernels."""

    @staticmethod
    def forward(ctx: Any, groups: LoraGroups, *parameters: Tensor) -> Tensor:
        norms = groups.norms()
        ctx.groups = groups
        ctx.save_for_backward(norms, *parameters)
        return norms.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        norms, *parameters = ctx.saved_tensors
        positive = norms > 0
        inverse = torch.where(positive, grad_outputs[0] / torch.where(positive, norms, 1.0), 0.0)
        factors = inverse[ctx.groups._index].unbind()
        per_matrix = [f.to(p.device, p.dtype) for f, p in zip(factors, parameters, strict=True)]
        return (None, *torch._foreach_mul(parameters, per_matrix))


def trainable_adapters(model: nn.Module) -> Sequence[str]:
    """Returns the sorted names of the adapters with at least one LoRA matrix that requires a gradient."""
    return sorted(
        {
            name
            for layer in model.modules()
            if isinstance(layer, LoraLayer)
            for name, linear in layer.lora_A.items()
            if linear.weight.requires_grad or layer.lora_B[name].weight.requires_grad
        }
    )
