"""What GS-LoRA does between two steps: the proximal step and the moving average."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import InvalidInputError
from ..training import steps_per_epoch
from ..tuner import LoraGroups

EMA_FILE = "ema.safetensors"


logger = logging.get_logger(__name__)


class SparsityCallback(TrainerCallback):
    """
    Group sparsity by proximal steps: right after the optimizer's step, with the learning rate just used.

    Groups that have reached zero are frozen. Finding out which have costs a host synchronisation, so on accelerators
    [`NonFiniteCallback`] does it in the one that it makes anyway, before the next optimizer step; on CPU, where it is
    free, it is done after every step. Results do not depend on it: a dropped group stays exactly zero, and passes on a
    gradient of exactly zero, from the step that dropped it.
    The last group is neither dropped nor shrunk: an adapter without any forgets nothing. Where every group is zero to
    begin with, nothing is left to train and training stops.

    Args:
        groups ([`LoraGroups`]):
            The groups of the adapter that trains.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        # Whether every group that is zero is known to be frozen.
        self.up_to_date = True

    @staticmethod
    def weight_now(args: Any, state: Any) -> float:
        """α at the step that is being taken: 0 in the warm-up and once the surviving groups are refitted.

        The proximal step's α rises: from the first step on, it would shrink groups faster than a fresh adapter, whose
        lora_B is zero, can grow, and where batches agree little it drops all before they have learnt anything.
        """
        epoch = state.epoch or 0.0
        if args.sparsity_until_epoch is not None and epoch >= args.sparsity_until_epoch:
            return 0.0
        risen = epoch - args.sparsity_warmup_epochs
        if risen < 0.0:
            return 0.0
        if args.sparsity != "proximal" or risen >= args.sparsity_ramp_epochs:
            return args.sparsity_weight
        return args.sparsity_weight * risen / args.sparsity_ramp_epochs

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        args.check_sparsity_acts(_epochs(args, state, train_dataloader))
        # What is zero when training begins, again or from a checkpoint, stays out.
        if args.sparsity == "proximal":
            self.freeze_zero_groups(control)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if args.sparsity != "proximal" or getattr(optimizer, "step_was_skipped", False):
            return
        weight = self.weight_now(args, state)
        if weight > 0.0:
            self.groups.proximal_step(self._learning_rates(optimizer) * weight, keep_last=True)
            self.up_to_date = False
            if self._synchronises_for_free():
                self.freeze_zero_groups(control)

    def flags(self) -> torch.Tensor | None:
        """Which groups are zero, where that is not known; see [`Watching`]."""
        return None if self.up_to_date else self.groups.norms() == 0

    def fetched(self, flags: list[bool], control: Any) -> None:
        # Now: without a proximal step after it, the optimizer's momentum would move dropped groups from zero.
        self.freeze_zero_groups(control, flags)

    def on_log(self, args, state, control, **kwargs):
        if not self.up_to_date:
            self.freeze_zero_groups(control)

    def on_train_end(self, args, state, control, **kwargs):
        self.groups.thaw()
        self.up_to_date = True

    def freeze_zero_groups(self, control: Any = None, is_zero: Sequence[bool] | None = None) -> None:
        """Freeze the groups that are zero (`is_zero`, where it is known); stop the training if none is left."""
        self.up_to_date = True
        if self.groups.freeze_zero_groups(is_zero) and not any(p.requires_grad for p in self.groups.parameters):
            logger.warning(
                "Every group of the adapter is zero, so that it does nothing. Training stops; start with a fresh one."
            )
            if control is not None:
                control.should_training_stop = True

    def _synchronises_for_free(self) -> bool:
        return self.groups.parameters[0].device.type == "cpu"

    def _learning_rates(self, optimizer: Any) -> float | torch.Tensor:
        """The learning rate of each group; one number where all are the same (the usual case).

        Raises:
            InvalidInputError: If the optimizer does not have a matrix that trains.
        """
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        per_group = [0.0] * len(self.groups)
        for parameter, index in zip(self.groups.parameters, self.groups.group_of, strict=True):
            if id(parameter) in rates:
                per_group[index] = float(rates[id(parameter)])
            elif parameter.requires_grad:
                raise InvalidInputError(
                    "optimizer",
                    optimizer,
                    f"one with every parameter that trains; a matrix of the group {self.groups.names[index]!r} has "
                    "no learning rate to be shrunk with",
                    "Give it every parameter with `requires_grad`.",
                )
        if len(set(per_group)) == 1:
            return per_group[0]
        return torch.tensor(per_group, device=self.groups.parameters[0].device)


class EMACallback(TrainerCallback):
    """
    Exponential moving average of the adapter (GS-LoRA++, https://arxiv.org/abs/2501.09705, §3.5).

    ē ← d · ē + (1 − d) · w in float32, from `ema_start_epoch` on: at the end of every epoch, also of a last one that
    is cut short, or with `ema_update="step"` after every optimizer step. A group that has been dropped is zero in the
    average too. Checkpoints hold the average next to the weights that train.

    Args:
        groups ([`LoraGroups`]):
            The groups of the adapter that trains.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        self.average: list[torch.Tensor] | None = None
        self._step = 0  # the step of the last update
        self._raw: list[torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        args.check_average_starts(_epochs(args, state, train_dataloader))
        if state.global_step == 0:
            self.average, self._step = None, 0
        elif args.ema_update == "epoch" and self._step != state.global_step and _is_whole(state.epoch or 0.0):
            # A checkpoint written at the last step of an epoch, before the epoch's end.
            self._update(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if args.ema_update == "step":
            self._update(args, state)

    def on_epoch_end(self, args, state, control, **kwargs):
        # Taken in already: a training that was resumed here has been brought to its epoch's end.
        if args.ema_update != "epoch" or self._step == state.global_step:
            return
        if _is_whole(state.epoch or 0.0) or state.global_step >= state.max_steps:
            self._update(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.swap_in()
        self._raw = None

    def _update(self, args: Any, state: Any) -> None:
        if (state.epoch or 0.0) < args.ema_start_epoch:
            return
        self._step = state.global_step
        current = [p.detach().float() for p in self.groups.parameters]
        if self.average is None:
            self.average = [p.clone() for p in current]
        else:
            torch._foreach_lerp_(self.average, current, 1.0 - args.ema_decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the model for the time of a block."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the average into the model; `swap_out` takes it back."""
        if self.average is None:
            return
        self._raw = [p.detach().clone() for p in self.groups.parameters]
        alive = (self.groups.norms() > 0).float()
        for position, parameter in enumerate(self.groups.parameters):
            parameter.copy_(self.average[position] * alive[self.groups.group_of[position]].to(parameter.device))

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
            tensors = {str(i): t.cpu().contiguous() for i, t in enumerate(self.average)}
            save_file(tensors, os.path.join(folder, EMA_FILE), metadata={"step": str(self._step)})

    def load(self, folder: str) -> None:
        """Read the average from a checkpoint; none if it has none."""
        self.average, self._step = None, 0
        path = os.path.join(folder, EMA_FILE)
        if os.path.isfile(path):
            with safe_open(path, framework="pt") as file:
                self.average = [file.get_tensor(str(i)).to(p.device) for i, p in enumerate(self.groups.parameters)]
                self._step = int(file.metadata()["step"])


def _epochs(args: Any, state: Any, train_dataloader: Any) -> float:
    """For how many epochs is trained, counted as `state.epoch` is: by batches, also where it is given in steps."""
    whole, rest = divmod(state.max_steps, steps_per_epoch(args, train_dataloader))
    return whole + rest * args.gradient_accumulation_steps / len(train_dataloader)


def _is_whole(epoch: float) -> bool:
    return abs(epoch - round(epoch)) < 1e-9
