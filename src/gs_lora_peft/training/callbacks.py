"""What happens between two steps: the proximal step, the moving average, and the check for numbers that are no numbers."""

from __future__ import annotations

import os
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from ..tuner import LoraGroups

EMA_FILE = "ema.safetensors"


class SparsityCallback(TrainerCallback):
    """
    Group sparsity by proximal steps: right after the optimizer's step, with the learning rate just used.

    Groups that have reached zero are frozen. Finding out which have costs a host synchronisation, so on accelerators it
    is done when something is logged; on CPU, where it is free, after every step. Results do not depend on it: a
    dropped group stays exactly zero, and passes on a gradient of exactly zero, from the step that dropped it.

    Args:
        groups ([`LoraGroups`]): the groups of the adapter that trains.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        self._settled = False

    def weight_now(self, args: Any, state: Any) -> float:
        """α at the step that is being taken: 0 in the warm-up and once the surviving groups are refitted."""
        epoch = state.global_step * args.num_train_epochs / max(state.max_steps, 1)
        if epoch < args.sparsity_warmup_epochs:
            return 0.0
        if args.sparsity_until_epoch is not None and epoch >= args.sparsity_until_epoch:
            return 0.0
        return args.sparsity_weight

    def on_train_begin(self, args, state, control, **kwargs):
        self._settled = False
        # A resumed run: what was zero when it was saved stays out.
        self.groups.freeze_zero_groups()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if args.sparsity != "proximal" or getattr(optimizer, "step_was_skipped", False):
            return
        weight = self.weight_now(args, state)
        if weight > 0.0:
            self.groups.proximal_step(self._learning_rates(optimizer) * weight)
            self._settled = False
            if self.groups.parameters[0].device.type == "cpu":
                self.groups.freeze_zero_groups()
        elif not self._settled:
            # The last proximal step may have dropped groups that are not frozen yet.
            self.groups.freeze_zero_groups()
            self._settled = True

    def on_log(self, args, state, control, **kwargs):
        if args.sparsity == "proximal" and not self._settled:
            self.groups.freeze_zero_groups()

    def on_train_end(self, args, state, control, **kwargs):
        self.groups.thaw()

    def _learning_rates(self, optimizer: Any) -> float | torch.Tensor:
        """The learning rate of each group; one number where all are the same (the usual case)."""
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        per_group = [0.0] * len(self.groups)
        for parameter, index in zip(self.groups.parameters, self.groups.group_of, strict=True):
            per_group[index] = float(rates.get(id(parameter), per_group[index]))
        if len(set(per_group)) == 1:
            return per_group[0]
        return torch.tensor(per_group, device=self.groups.parameters[0].device)


class EMACallback(TrainerCallback):
    """
    Exponential moving average of the adapter over epochs (GS-LoRA++, https://arxiv.org/abs/2501.09705, §3.5).

    ē ← d · ē + (1 − d) · w at the end of every epoch from `ema_start_epoch` on, in float32. A group that has been
    dropped is zero in the average too.

    Args:
        groups ([`LoraGroups`]): the groups of the adapter that trains.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        self.average: list[torch.Tensor] | None = None
        self._raw: list[torch.Tensor] | None = None

    def on_epoch_end(self, args, state, control, **kwargs):
        if (state.epoch or 0.0) < args.ema_start_epoch:
            return
        current = [p.detach().float() for p in self.groups.parameters]
        if self.average is None:
            self.average = [p.clone() for p in current]
            return
        torch._foreach_lerp_(self.average, current, 1.0 - args.ema_decay)

    def on_train_end(self, args, state, control, **kwargs):
        self.swap_in()
        self._raw = None

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the average into the model; `swap_out` takes it back."""
        if self.average is None:
            return
        self._raw = [p.detach().clone() for p in self.groups.parameters]
        alive = (self.groups.norms() > 0).float()
        for position, parameter in enumerate(self.groups.parameters):
            parameter.copy_(self.average[position] * alive[self.groups.group_of[position]])

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the weights that train back."""
        if self._raw is not None:
            for parameter, raw in zip(self.groups.parameters, self._raw, strict=True):
                parameter.copy_(raw)
            self._raw = None

    def save(self, folder: str) -> None:
        """Write the average into a checkpoint."""
        if self.average is not None:
            save_file({str(i): t.cpu().contiguous() for i, t in enumerate(self.average)}, os.path.join(folder, EMA_FILE))

    def load(self, folder: str) -> None:
        """Read the average from a checkpoint, if it has one."""
        path = os.path.join(folder, EMA_FILE)
        if os.path.isfile(path):
            tensors = load_file(path)
            self.average = [
                tensors[str(i)].to(parameter.device) for i, parameter in enumerate(self.groups.parameters)
            ]

