"""The check for numbers that are no numbers, before they reach the weights."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import TrainerCallback

from .checks import NonFiniteLossError

LAST_GOOD_FOLDER = "last-good"


class FiniteCallback(TrainerCallback):
    """
    Stops before the optimizer's step where a loss or a gradient is not finite, so that the weights stay good.

    One host synchronisation a step. The losses are means over all processes, so that all stop at the same step.

    Args:
        trainer ([`GSLoraTrainer`]): the trainer that runs.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        flags = [self.trainer.meter.finite()]
        gradients = [p.grad for p in self.trainer.groups.parameters if p.grad is not None]
        # With a loss scaler (fp16) an infinite gradient is normal: the scaler skips the step and halves the scale.
        if gradients and self.trainer.accelerator.scaler is None:
            norms = torch._foreach_norm(gradients)
            flags.append(torch.isfinite(torch.stack([n.to(norms[0].device) for n in norms]).sum()).reshape(1))
        finite = torch.cat(flags)
        if finite.all():
            return
        retain, forget, *_ = finite.tolist()
        halves = [name for name, good in (("retain", retain), ("forget", forget)) if not good]
        raise NonFiniteLossError(self._stop(args, state, halves))

    def _stop(self, args: Any, state: Any, halves: list[str]) -> str:
        trainer = self.trainer
        trainer.model.zero_grad()
        folder = os.path.join(args.output_dir, LAST_GOOD_FOLDER)
        trainer.save_model(folder, _internal_call=True)
        # A process that raises early would take the one that is writing down with it.
        trainer.accelerator.wait_for_everyone()
        what = " and the ".join(f"loss of the {half} half" for half in halves) or "gradient"
        where = "these samples" if halves else "the samples"
        return (
            f"at step {state.global_step + 1} the {what} is NaN or infinite. The adapter before that step is in "
            f"{folder!r} and in the model. Lower `learning_rate` (now {args.learning_rate}) or `forget_weight` (now "
            f"{args.forget_weight}), or look for broken values in {where}."
        )
