"""Adds losses and values of the method to the logs, and carries running means through a checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .method import Method, TaskTrainer


class LogContinuation(TrainerCallback):
    """Carries running means through a checkpoint, and ends the epoch that a checkpoint left open.

    The Trainer's checkpoint holds the rows logged so far, but not the sums since the last row. At the last step of an
    epoch it is written before the end of the epoch, which a resumed training does not reach again: its row, its
    evaluation and the events of callbacks would be missing.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.

    Attributes:
        stopped (`bool`):
            Whether the end of an epoch, as this callback carried it out, stops the training.
    """

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer
        self.stopped = False
        self._restored: dict[str, Any] = {}
        self._at_step: tuple[Any, torch.Tensor] | None = None  # the sums before the present step
        self._ended_at = -1
        self._learning_rate: float | None = None
        self.grad_norm: Any = None

    def load(self, state: dict[str, Any] | None) -> None:
        """Takes what [`~LogContinuation.state`] returned; `None` starts anew."""
        self._restored = state or {}

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as plain JSON types. Every process has to call it."""
        trainer = self.trainer
        meter, loss = self._at_step or (trainer.meter.sums(), trainer._tr_loss)
        names, sums, count = meter
        own = torch.cat([loss.detach().reshape(1).float(), *([sums.to(loss.device)] if sums is not None else [])])
        every = trainer.accelerator.gather(own) if trainer.args.world_size > 1 else own
        return {
            "names": list(names),
            "count": count,
            "sums": every.reshape(trainer.args.world_size, -1).tolist(),
            "logged_at": trainer._globalstep_last_logged,
            "epoch_has_ended": self._ended_at == trainer.state.global_step,
            "learning_rate": self._learning_rate,
            "grad_norm": None if self.grad_norm is None else float(self.grad_norm),
        }

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        restored, self._restored = self._restored, {}
        self._at_step, self._ended_at, self.stopped = None, -1, False
        if not restored or state.global_step == 0:
            return
        self._put_back(restored, args)
        batches = -(-len(train_dataloader) // args.gradient_accumulation_steps)
        at_the_end = state.global_step % max(batches, 1) == 0 or state.global_step >= state.max_steps
        if at_the_end and not restored["epoch_has_ended"]:
            self.end_epoch()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint may be written in the middle of a step (enable_jit_checkpoint), which is then taken again.
        self._at_step = (self.trainer.meter.sums(), self.trainer._tr_loss.clone())

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._learning_rate = self.trainer._get_learning_rate()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._at_step = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended_at = state.global_step

    def _put_back(self, restored: dict[str, Any], args: TrainingArguments) -> None:
        trainer, every = self.trainer, torch.tensor(restored["sums"], dtype=torch.float32)
        # With another number of processes, each goes on from the mean over all of them.
        own = every[args.process_index] if len(every) == args.world_size else every.mean(dim=0)
        own = own.to(trainer._tr_loss.device)
        trainer._tr_loss += own[0]
        # `train` returns the loss of its own steps only.
        trainer._total_loss_scalar -= float(every[:, 0].mean())
        trainer._globalstep_last_logged = restored["logged_at"]
        trainer.meter.put_back(restored["names"], own[1:] if restored["count"] else None, restored["count"])
        self._learning_rate, self.grad_norm = restored["learning_rate"], restored["grad_norm"]

    def end_epoch(self) -> None:
        """Ends an epoch outside of the Trainer's loop: events, logs, evaluation, checkpoint."""
        trainer = self.trainer
        state = trainer.state
        trainer.control = trainer.callback_handler.on_epoch_end(trainer.args, state, trainer.control)
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss,
            self.grad_norm,
            trainer.model_wrapped,
            trainer._trial,
            math.ceil(state.epoch or 0.0) - 1,
            trainer.ignore_keys_for_eval,
            time.time(),
            learning_rate=self._learning_rate,
        )
        self.stopped = bool(trainer.control.should_training_stop)


class TrainingLogs(TaskTrainer):
    """The part of [`ForgettingTrainer`] that adds losses, accuracies and values of the method to the logs."""

    method: Method

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self.meter.means()) is not None:
            logs.update(self._training_logs(self.global_mean(means)))
        super().log(logs, *args, **kwargs)

    def _training_logs(self, means: Tensor) -> dict[str, float]:
        """The values by name, fetched in one host synchronisation."""
        own = self.method.logs()
        values = torch.cat([means, *(value.detach().float().reshape(1).to(means.device) for value in own.values())])
        return dict(zip([*self.meter.names, *own], values.tolist(), strict=True))
