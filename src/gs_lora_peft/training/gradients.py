"""Stops where no gradient, or a non-finite one, would reach the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import InvalidInputError
from .method import TaskTrainer


class NonFiniteLossError(ValueError):
    """A loss or a gradient became NaN or infinite. The weights are those of the last step where both were finite."""


class NoGradientError(ValueError):
    """No gradient reaches the weights that train, so that they would stay as they are, as before the step."""


class NoStepError(ValueError):
    """A training ended in which the optimizer changed no weight, so that nothing was forgotten."""


LAST_GOOD_FOLDER = "last-good"


@contextmanager
def one_low_precision(args: Any) -> Iterator[None]:
    """
    Says what is wrong where a model mixes both kinds of 16-bit numbers.

    PyTorch's autocast to the one refuses to put tensors of the other together. Which models do so only their forward
    tells: many run well on a base in float16 with `bf16`.

    Args:
        args (`transformers.TrainingArguments`):
            The arguments.

    Raises:
        InvalidInputError: In place of PyTorch's error.
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


class NonFiniteCallback(TrainerCallback):
    """
    Stops before the optimizer's step where a loss or a gradient is not finite, and takes the weights back to the last
    step at which both were finite: weights that give no finite loss are not good, though they may be finite.

    One host synchronisation a step, in which others may have their flags fetched, too. What is wrong in one process is
    told to all, so that they stop at the same step.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.
        watching (`Sequence[Watching]`, *optional*):
            Who else wants flags.
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


_FUNCTION = "_gradient_checkpointing_func"


logger = logging.get_logger(__name__)


def no_gradient(step: int) -> NoGradientError:
    """The error of a training in which what trains gets no gradient at `step`."""
    return NoGradientError(
        f"at step {step} no gradient reaches the weights that train, so that they would stay as they are and nothing "
        "would be forgotten. Part of the model runs under torch.no_grad() or detaches what it computes, or "
        "checkpoints with use_reentrant=True around frozen inputs. Let the forward keep its graph (in training, "
        "remove torch.no_grad() and .detach(), and give activation checkpointing use_reentrant=False). If it does, "
        "the losses have no slope: raise `forget_weight` or `forget_bound`."
    )


def no_edit(method: str) -> NoStepError:
    """The error of a method that edits weights and left them as they were."""
    return NoStepError(
        f"the method {method!r} changed no weight, so that nothing is forgotten. Give it other hyper-parameters."
    )


def no_step(steps: int) -> NoStepError:
    """The error of a training of so many steps that left the weights as they were."""
    return NoStepError(
        f"the training ended after {steps} steps, in none of which the optimizer changed a weight, so that nothing is "
        "forgotten. Look for a learning rate of 0 (`learning_rate`, or `warmup_steps` that cover the training), for "
        "callbacks that stop it and, with fp16, for infinite gradients, because of which every step is skipped; or "
        "train longer."
    )


@contextmanager
def reentrant_checkpoints(model: nn.Module) -> Iterator[None]:
    """
    Makes reentrant activation checkpoints of transformers' layers give a gradient, however they were switched on.

    A reentrant checkpoint passes a gradient on only if one of its inputs requires one. The base is frozen, so that
    what the first block gets does not. transformers' own remedy is a hook on the input embeddings, which not every
    model shows. Here every such checkpoint gets one more input, which requires a gradient and takes part in nothing;
    the backward pass then need not go below the first block that trains.

    Args:
        model (`torch.nn.Module`):
            The model to train.
    """
    changed = [(module, vars(module)[_FUNCTION]) for module in _reentrant_modules(model)]
    for module, function in changed:
        setattr(module, _FUNCTION, _WithGradient(function))
    try:
        yield
    finally:
        for module, function in changed:
            setattr(module, _FUNCTION, function)


def check_checkpointing(args: Any, model: nn.Module) -> None:
    """Refuses reentrant checkpoints where DDP looks for unused parameters: it cannot see those inside of them.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments.
        model (`torch.nn.Module`):
            The model to train.

    Raises:
        InvalidInputError: With several processes, unless `ddp_find_unused_parameters` is `False`.
    """
    if args.world_size <= 1 or args.ddp_find_unused_parameters is False:
        return
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        settings = getattr(args, f"{name}_kwargs", None) or {}
        by_arguments = bool(getattr(args, name, False)) and bool(settings.get("use_reentrant"))
        if by_arguments or (name == "activation_checkpointing" and any(_reentrant_modules(model))):
            raise InvalidInputError(
                f"{name}_kwargs",
                settings or "what the model was given",
                "use_reentrant=False with several processes: to DDP, what a reentrant checkpoint holds seems unused",
                f"Give {name}_kwargs={{'use_reentrant': False}}, or the same to the model's own method.",
            )


def _reentrant_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        function = vars(module).get(_FUNCTION)
        keywords = getattr(function, "keywords", None)
        # Left out, it is True in older versions of PyTorch.
        reentrant = keywords is not None and keywords.get("use_reentrant", True) is not False
        if reentrant and getattr(module, "gradient_checkpointing", False):
            yield module


class _WithGradient:
    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        device = next((value.device for value in args if isinstance(value, Tensor)), None)
        asking = torch.zeros((), device=device, requires_grad=True)
        return self.function(lambda _, *inputs, **named: layer(*inputs, **named), asking, *args, **kwargs)


class GradientCallback(TrainerCallback):
    """
    Looks before the first optimizer step whether what trains has got a gradient (one host synchronisation a training).

    In a fresh adapter, whose `lora_B` are zero, those alone are judged: the gradient of `lora_A` is zero then. Nothing
    is judged where everything is frozen.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.
        takes_steps (`bool`, *optional*, defaults to `True`):
            Whether the method changes weights by optimizer steps.
    """

    def __init__(self, trainer: TaskTrainer, takes_steps: bool = True):
        self.trainer = trainer
        self.takes_steps = takes_steps
        self._steps = 0  # optimizer steps that were really taken since training began
        self._before: list[Tensor] = []
        self._looked = False

    @property
    def changed_nothing(self) -> bool:
        """Whether the training left the weights as they were: no step was taken, or none of them moved a weight."""
        no_step = self.takes_steps and self._steps == 0
        if not any(before.any() for before in self._before):
            return no_step  # SparsityCallback has warned of an adapter of zeros, which cannot train
        pairs = zip(self._before, self.trainer.trained.parameters, strict=True)
        return no_step or all(torch.equal(before, now.detach()) for before, now in pairs)

    def on_train_begin(self, args, state, control, **kwargs):
        self._steps, self._looked = 0, False
        self._before = [parameter.detach().clone() for parameter in self.trainer.trained.parameters]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._looked:
            return
        self._looked = True
        judged = [parameter for parameter in self.trainer.trained.must_learn() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in judged if parameter.grad is not None]
        # Not finite is another matter: of the loss scaler (fp16), or of NonFiniteCallback.
        if judged and not any(gradient.any() for gradient in gradients):
            raise no_gradient(state.global_step + 1)
        self._tell_of_silent_groups()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._steps += not getattr(optimizer, "step_was_skipped", False)

    def _tell_of_silent_groups(self) -> None:
        trains: dict[str, bool] = {}  # by group: whether one of its tensors has got a gradient
        trained = self.trainer.trained
        for parameter, name in zip(trained.parameters, trained.names, strict=True):
            if parameter.requires_grad:
                trains[name] = trains.get(name, False) or parameter.grad is not None
        if silent := [name for name, heard in trains.items() if not heard]:
            logger.warning(
                f"No gradient reaches {len(silent)} of {len(trains)} groups at the first step, e.g. {silent[0]!r}. "
                "Part of the model's forward takes no part in its answer, or runs under torch.no_grad()."
            )
