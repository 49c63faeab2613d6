"""The callbacks of GS-LoRA: the proximal step and the moving average."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..errors import InvalidInputError
from ..training import GSLoraTrainingArguments, steps_per_epoch
from ..tuner import LoraGroups

EMA_FILE = "ema.safetensors"

logger = logging.get_logger(__name__)


class SparsityCallback(TrainerCallback):
    """Makes groups sparse by a proximal step after every optimizer step, with the same learning rate.

    Groups that reach zero are frozen. To find them costs a host synchronisation. On accelerators
    [`NonFiniteCallback`] therefore finds them in its own synchronisation, before the next optimizer step. On CPU,
    where it is free, they are found after every step. The result is the same: a dropped group stays exactly zero, and
    its gradient is exactly zero, from the step that dropped it. The last group is neither dropped nor shrunk, because
    an adapter without groups forgets nothing. If every group is zero at the start, training stops.

    Args:
        groups ([`LoraGroups`]):
            Groups of the adapter that trains.

    Attributes:
        up_to_date (`bool`):
            Whether every zero group is frozen.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        self.up_to_date = True

    @staticmethod
    def weight_now(args: GSLoraTrainingArguments, state: TrainerState) -> float:
        """Returns α at the present step: 0 in the warm-up, and from `sparsity_until_epoch` on.

        With proximal steps α rises first. At full strength, it would shrink groups faster than a fresh adapter, whose
        `lora_B` is zero, can grow, and might drop all of them before they learn anything.
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

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        args.check_sparsity_acts(_epochs(args, state, train_dataloader))
        # Groups that are zero when a training begins or is resumed stay dropped.
        if args.sparsity in ("proximal", "select"):
            self.freeze_zero_groups(control)

    def on_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if args.sparsity != "proximal" or getattr(optimizer, "step_was_skipped", False):
            return
        weight = self.weight_now(args, state)
        if weight > 0.0:
            self.groups.proximal_step(self._learning_rates(optimizer) * weight, keep_last=True)
            self.up_to_date = False
            if self._synchronises_for_free():
                self.freeze_zero_groups(control)

    def flags(self) -> torch.Tensor | None:
        """Returns which groups are zero; `None` if that is known. See [`Watching`]."""
        return None if self.up_to_date else self.groups.norms() == 0

    def fetched(self, flags: list[bool], control: TrainerControl) -> None:
        """Freezes the zero groups. See [`Watching`]."""
        # Before the step: without a proximal step after it, the optimizer's momentum would move them away from zero.
        self.freeze_zero_groups(control, flags)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.up_to_date:
            self.freeze_zero_groups(control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.groups.thaw()
        self.up_to_date = True

    def freeze_zero_groups(self, control: TrainerControl | None = None, is_zero: Sequence[bool] | None = None) -> None:
        """Freezes the groups that are zero, and stops the training if no other is left.

        Args:
            control (`transformers.TrainerControl`, *optional*):
                Control of the training, to stop it.
            is_zero (`Sequence[bool]`, *optional*):
                Whether each group is zero; by default this is found out, with a host synchronisation.
        """
        self.up_to_date = True
        if self.groups.freeze_zero_groups(is_zero) and not any(p.requires_grad for p in self.groups.parameters):
            logger.warning(
                "Every group of the adapter is zero, so that it has no effect. Training stops; start with a fresh one."
            )
            if control is not None:
                control.should_training_stop = True

    def _synchronises_for_free(self) -> bool:
        return self.groups.parameters[0].device.type == "cpu"

    def _learning_rates(self, optimizer: Optimizer) -> float | torch.Tensor:
        """The learning rate of each group; one number if all are equal, as usual.

        Raises:
            InvalidInputError: If the optimizer lacks a matrix that trains.
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
                    f"an optimizer of every parameter that trains; it has no learning rate for a matrix of the group "
                    f"{self.groups.names[index]!r}",
                    "Give it every parameter with `requires_grad`.",
                )
        if len(set(per_group)) == 1:
            return per_group[0]
        return torch.tensor(per_group, device=self.groups.parameters[0].device)


class EMACallback(TrainerCallback):
    """Keeps an exponential moving average of the adapter (GS-LoRA++, https://arxiv.org/abs/2501.09705, §3.5).

    ē ← d · ē + (1 − d) · w in float32, from `ema_start_epoch` on: at the end of every epoch, also of a shorter last
    one, or with `ema_update="step"` after every optimizer step. A dropped group is zero in the average, too.
    Checkpoints hold the average beside the weights that train.

    Args:
        groups ([`LoraGroups`]):
            Groups of the adapter that trains.

    Attributes:
        average (`list[torch.Tensor]`, *optional*):
            The average of each matrix, float32; `None` before the first update.
    """

    def __init__(self, groups: LoraGroups):
        self.groups = groups
        self.average: list[torch.Tensor] | None = None
        self._step = 0  # the step of the last update
        self._raw: list[torch.Tensor] | None = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        args.check_average_starts(_epochs(args, state, train_dataloader))
        if state.global_step == 0:
            self.average, self._step = None, 0
        elif args.ema_update == "epoch" and self._step != state.global_step and _is_whole(state.epoch or 0.0):
            # The checkpoint was written at the last step of an epoch, before the update at its end.
            self._update(args, state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.ema_update == "step":
            self._update(args, state)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A training resumed at the end of an epoch has updated the average already.
        if args.ema_update != "epoch" or self._step == state.global_step:
            return
        if _is_whole(state.epoch or 0.0) or state.global_step >= state.max_steps:
            self._update(args, state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.swap_in()
        self._raw = None

    def _update(self, args: GSLoraTrainingArguments, state: TrainerState) -> None:
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
        """Puts the average into the model for the time of a block."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    @torch.no_grad()
    def swap_in(self) -> None:
        """Puts the average into the model, until [`~EMACallback.swap_out`]."""
        if self.average is None:
            return
        self._raw = [p.detach().clone() for p in self.groups.parameters]
        alive = (self.groups.norms() > 0).float()
        for position, parameter in enumerate(self.groups.parameters):
            parameter.copy_(self.average[position] * alive[self.groups.group_of[position]].to(parameter.device))

    @torch.no_grad()
    def swap_out(self) -> None:
        """Puts the weights that train back into the model."""
        if self._raw is not None:
            for parameter, raw in zip(self.groups.parameters, self._raw, strict=True):
                parameter.copy_(raw)
            self._raw = None

    def save(self, folder: str) -> None:
        """Writes the average into a checkpoint."""
        if self.average is not None:
            tensors = {str(i): t.cpu().contiguous() for i, t in enumerate(self.average)}
            save_file(tensors, os.path.join(folder, EMA_FILE), metadata={"step": str(self._step)})

    def load(self, folder: str) -> None:
        """Reads the average from a checkpoint; without one in it, the average starts anew."""
        self.average, self._step = None, 0
        path = os.path.join(folder, EMA_FILE)
        if os.path.isfile(path):
            with safe_open(path, framework="pt") as file:
                self.average = [file.get_tensor(str(i)).to(p.device) for i, p in enumerate(self.groups.parameters)]
                self._step = int(file.metadata()["step"])


def _epochs(args: GSLoraTrainingArguments, state: TrainerState, train_dataloader: DataLoader) -> float:
    """The length of the training in epochs, counted by batches like `state.epoch`, also with `max_steps`."""
    whole, rest = divmod(state.max_steps, steps_per_epoch(args, train_dataloader))
    return whole + rest * args.gradient_accumulation_steps / len(train_dataloader)


def _is_whole(epoch: float) -> bool:
    return abs(epoch - round(epoch)) < 1e-9
