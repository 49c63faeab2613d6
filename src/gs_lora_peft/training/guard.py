"""Looks for NaN and infinity before they reach the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..errors import InvalidInputError
from .base import TaskTrainer
from .checks import NonFiniteLossError

LAST_GOOD_FOLDER = "last-good"


@contextmanager
def one_low_precision(args: Any) -> Iterator[None]:
    """
    Says what is wrong where a model mixes both kinds of 16-bit numbers.

    PyTorch's autocast to the one refuses to put tensors of the other together. Which models do so only their forward
    tells: many run well on a base in float16 with `bf16`.

    Args:
        args (`transformers.TrainingArguments`): the arguments.

    Raises:
        InvalidInputError: in place of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "autocast::prioritize" not in str(error):
            raise
        name, other = ("bf16", "float16") if args.bf16 else ("fp16", "bfloat16")
        fix = f"Load the model in float32 (dtype=torch.float32), or leave `{name}` out."
        expected = f"False for a base model in {other}: its forward puts both kinds of numbers together"
        raise InvalidInputError(name, getattr(args, name), expected, fix) from error


def _broken_weights(trainer: TaskTrainer) -> list[str]:
    """The names of the weights, besides those that train, that hold NaN or infinite numbers."""
    trained = {id(parameter) for parameter in trainer.trained.parameters}
    frozen = [named for named in trainer.model.named_parameters() if id(named[1]) not in trained]
    return [name for name, weight in frozen if weight.is_floating_point() and not weight.isfinite().all()]


@runtime_checkable
class Watching(Protocol):
    """A callback that wants to know something of the device at every step, without a host synchronisation more."""

    def flags(self) -> Tensor | None:
        """What to fetch: bool, shape `(n,)`; `None` where nothing is to be known at this step."""

    def fetched(self, flags: list[bool], control: Any) -> None:
        """Takes what was fetched, before the optimizer's step. Not called where the training breaks off."""


class FiniteCallback(TrainerCallback):
    """
    Stops before the optimizer's step where a loss or a gradient is not finite, and takes the weights back to the last
    step at which both were finite: weights that give no finite loss are not good, though they may be finite.

    One host synchronisation a step, in which others may have their flags fetched, too. What is wrong in one process is
    told to all, so that they stop at the same step.

    Args:
        trainer ([`TaskTrainer`]): the trainer that runs.
        watching (`Sequence[Watching]`, *optional*): who else wants flags.
    """

    def __init__(self, trainer: TaskTrainer, watching: Sequence[Watching] = ()):
        self.trainer = trainer
        self.watching = watching
        self._good: list[Tensor] | None = None  # what trains, at the last good step

    def on_train_begin(self, args, state, control, **kwargs):
        self._good = None
        self._remember()

    def on_train_end(self, args, state, control, **kwargs):
        self._good = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        # A term of the loss may be broken in one process alone.
        flags = [self.trainer.global_mean(self.trainer.meter.finite().float()) == 1]
        gradients = [p.grad for p in self.trainer.trained.parameters if p.grad is not None]
        # With a loss scaler (fp16) an infinite gradient is normal: the scaler skips the step and halves the scale.
        if gradients and self.trainer.accelerator.scaler is None:
            norms = torch._foreach_norm(gradients)
            flags.append(torch.isfinite(torch.stack([n.to(norms[0].device) for n in norms]).sum()).reshape(1))
        judged = sum(map(len, flags))
        asked = [(callback, own) for callback in self.watching if (own := callback.flags()) is not None]
        flags += [own for _, own in asked]
        fetched = torch.cat([flag.to(flags[0].device) for flag in flags]).tolist()
        if all(fetched[:judged]):
            self._remember()
            for callback, own in asked:
                callback.fetched(fetched[judged : judged + len(own)], control)
                judged += len(own)
            return
        retain, forget, loss = fetched[:3]
        halves = [f"loss of the {name} half" for name, good in (("retain", retain), ("forget", forget)) if not good]
        raise NonFiniteLossError(self._stop(args, state, halves, "gradient" if loss else "loss"))

    @torch.no_grad()
    def _remember(self) -> None:
        matrices = [p.detach() for p in self.trainer.trained.parameters]
        if self._good is None:
            self._good = [matrix.clone() for matrix in matrices]
        else:
            torch._foreach_copy_(self._good, matrices)

    def _stop(self, args: Any, state: Any, halves: list[str], otherwise: str) -> str:
        trainer = self.trainer
        trainer.model.zero_grad()
        if self._good is not None:
            torch._foreach_copy_([p.detach() for p in trainer.trained.parameters], self._good)
            self._good = None
        folder = os.path.join(args.output_dir, LAST_GOOD_FOLDER)
        trainer.save_model(folder, _internal_call=True)
        # A process that raises early would take the one that is writing down with it.
        trainer.accelerator.wait_for_everyone()
        what = " and the ".join(halves) or otherwise
        where = "these samples" if halves else "the samples"
        advice = (
            f"Lower `learning_rate` (now {args.learning_rate}) or `forget_weight` (now {args.forget_weight}), or look "
            f"for broken values in {where}."
        )
        if broken := _broken_weights(trainer):
            advice = (
                f"Weights of the model that do not train are NaN or infinite ({len(broken)} of its tensors, e.g. "
                f"{broken[0]!r}): load a sound copy of the base model."
            )
        return (
            f"at step {state.global_step + 1} the {what} is NaN or infinite. The weights of the last good step are "
            f"in {folder!r} and in the model. {advice}"
        )
