"""Stops before a missing or a non-finite gradient reaches the weights, and keeps reentrant checkpoints training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..compat import bare, release_gathered, whole
from ..errors import InvalidInputError
from .arguments import GSLoraTrainingArguments
from .method import TaskTrainer

LAST_GOOD_FOLDER = "last-good"

# What may be non-finite, as `NonFiniteLossError.quantities` and its message name it.
_QUANTITIES = {
    "retain_loss": "loss of the retain half",
    "forget_loss": "loss of the forget half",
    "loss": "loss",
    "gradient": "gradient",
}

# Where transformers keeps the checkpointing function of a layer.
_CHECKPOINTING_FUNCTION = "_gradient_checkpointing_func"

logger = logging.get_logger(__name__)


# Errors


class NonFiniteLossError(ValueError):
    """A loss or a gradient is NaN or infinite.

    The model holds the weights of the last step at which all losses and gradients were finite.

    Args:
        step (`int`):
            The optimizer step that was stopped, counted from 1.
        quantities (`Sequence[str]`):
            What is not finite: `"retain_loss"`, `"forget_loss"` or both, else `"loss"` or `"gradient"`.
        folder (`str`):
            Where the last good weights are saved.
        advice (`str`):
            What to do, as a sentence.
        weights (`Sequence[str]`, *optional*):
            Names of the frozen weights that are NaN or infinite themselves.
    """

    def __init__(self, step: int, quantities: Sequence[str], folder: str, advice: str, weights: Sequence[str] = ()):
        what = " and the ".join(_QUANTITIES[name] for name in quantities)
        super().__init__(
            f"at step {step} the {what} is NaN or infinite. The weights of the last good step are in {folder!r} and "
            f"in the model. {advice}"
        )
        self.step = step
        self.quantities = tuple(quantities)
        self.folder = folder
        self.advice = advice
        self.weights = tuple(weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.quantities, self.folder, self.advice, self.weights)


class NoGradientError(ValueError):
    """No gradient reaches the weights that train, so that training would change nothing.

    Args:
        step (`int`):
            The optimizer step that was stopped, counted from 1.
    """

    def __init__(self, step: int):
        super().__init__(
            f"at step {step} no gradient reaches the weights that train, so that they would stay as they are and "
            "nothing would be forgotten. Part of the model runs under torch.no_grad() or detaches what it computes, "
            "or checkpoints with use_reentrant=True around frozen inputs. Let the forward keep its graph (in "
            "training, remove torch.no_grad() and .detach(), and give activation checkpointing use_reentrant=False). "
            "If it does, the losses have no slope: raise `forget_weight` or `forget_bound`."
        )
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step,)


class NoStepError(ValueError):
    """A training ended without a change to any weight, so that nothing is forgotten.

    Args:
        steps (`int`):
            How many steps the Trainer counted.
        method (`str`, *optional*):
            The method, if it edits weights instead of taking optimizer steps.
    """

    def __init__(self, steps: int, method: str | None = None):
        if method is not None:
            message = f"the method {method!r} changed no weight, so that nothing is forgotten. "
            message += "Give it other hyper-parameters."
        else:
            message = (
                f"the training ended after {steps} steps, and the optimizer changed no weight in any of them, so that "
                "nothing is forgotten. Look for a learning rate of 0 (`learning_rate`, or `warmup_steps` that cover "
                "the training), for callbacks that stop it and, with fp16, for infinite gradients, which make the "
                "loss scaler skip steps; or train longer."
            )
        super().__init__(message)
        self.steps = steps
        self.method = method

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.steps, self.method)


# Non-finite losses and gradients


@runtime_checkable
class Watching(Protocol):
    """A callback that reads flags from the device at every step, without a host synchronisation of its own.

    [`NonFiniteCallback`] fetches its own flags before each optimizer step, and those of others with them.
    """

    def flags(self) -> Tensor | None:
        """Returns what to fetch: bool, shape `(n,)`; `None` if nothing is needed at this step."""

    def fetched(self, flags: list[bool], control: TrainerControl) -> None:
        """Takes the fetched flags, before the optimizer's step. Not called if the training stops with an error."""


class NonFiniteCallback(TrainerCallback):
    """Stops before a non-finite loss or gradient reaches the weights.

    It also restores the weights of the last step at which both were finite: weights that give a non-finite loss are
    broken, even if they are finite themselves. It costs one host synchronisation a step. All processes stop at the
    same step, also if the loss of only one of them is broken.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.
        watching (`Sequence[Watching]`, *optional*):
            Callbacks whose flags are fetched in the same synchronisation.
    """

    def __init__(self, trainer: TaskTrainer, watching: Sequence[Watching] = ()):
        self.trainer = trainer
        self.watching = watching
        self._good: list[Tensor] | None = None  # what trains, at the last good step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._good = None
        self._remember()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._good = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        if not all(fetched[:judged]):
            retain, forget, loss = fetched[:3]
            halves = [name for name, good in (("retain_loss", retain), ("forget_loss", forget)) if not good]
            raise self._stopped(state.global_step + 1, halves or ["gradient" if loss else "loss"])
        self._remember()
        for callback, own in asked:
            callback.fetched(fetched[judged : judged + len(own)], control)
            judged += len(own)

    @torch.no_grad()
    def _remember(self) -> None:
        matrices = [p.detach() for p in self.trainer.trained.parameters]
        if self._good is None:
            self._good = [matrix.clone() for matrix in matrices]
        else:
            torch._foreach_copy_(self._good, matrices)

    def _stopped(self, step: int, quantities: list[str]) -> NonFiniteLossError:
        """Restores and saves the last good weights; returns the error to raise."""
        trainer, args = self.trainer, self.trainer.args
        trainer.model.zero_grad()
        if self._good is not None:
            torch._foreach_copy_([p.detach() for p in trainer.trained.parameters], self._good)
            self._good = None
        folder = os.path.join(str(args.output_dir), LAST_GOOD_FOLDER)
        trainer.save_model(folder, _internal_call=True)
        # A process that raises early would end the one that still writes.
        trainer.accelerator.wait_for_everyone()
        if broken := _broken_weights(trainer):
            advice = (
                f"Weights of the model that do not train are NaN or infinite ({len(broken)} of its tensors, e.g. "
                f"{broken[0]!r}): load a sound copy of the base model."
            )
        else:
            where = "these samples" if quantities[0] in ("retain_loss", "forget_loss") else "the samples"
            reads = "forget_weight" in trainer.method.reads
            weight = f" or `forget_weight` (now {args.forget_weight})" if reads else ""
            advice = f"Lower `learning_rate` (now {args.learning_rate}){weight}, or look for broken values in {where}."
        return NonFiniteLossError(step, quantities, folder, advice, broken)


def _broken_weights(trainer: TaskTrainer) -> list[str]:
    """Returns the names of the frozen weights that hold NaN or infinite numbers."""
    trained = {id(parameter) for parameter in trainer.trained.parameters}
    release_gathered(bare(trainer.model))
    frozen = [named for named in trainer.model.named_parameters() if id(named[1]) not in trained]
    return [name for name, weight in frozen if weight.is_floating_point() and not whole(weight).isfinite().all()]


# Missing gradients


class GradientCallback(TrainerCallback):
    """Checks before the first optimizer step that a gradient reaches what trains.

    It costs one host synchronisation a training. In a fresh adapter, whose `lora_B` are zero, only those are checked,
    because the gradient of `lora_A` is zero then. Nothing is checked if everything is frozen.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.
        takes_steps (`bool`, *optional*, defaults to `True`):
            Whether the method changes weights by optimizer steps.
    """

    def __init__(self, trainer: TaskTrainer, takes_steps: bool = True):
        self.trainer = trainer
        self.takes_steps = takes_steps
        self._steps = 0  # optimizer steps since training began, without those that a loss scaler skipped
        self._before: list[Tensor] = []
        self._checked = False

    @property
    def changed_nothing(self) -> bool:
        """Whether the training left the weights as they were."""
        no_step = self.takes_steps and self._steps == 0
        if not any(before.any() for before in self._before):
            return no_step  # SparsityCallback has warned of an adapter of zeros, which cannot train
        pairs = zip(self._before, self.trainer.trained.parameters, strict=True)
        return no_step or all(torch.equal(before, now.detach()) for before, now in pairs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._steps, self._checked = 0, False
        self._before = [parameter.detach().clone() for parameter in self.trainer.trained.parameters]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._checked:
            return
        self._checked = True
        judged = [parameter for parameter in self.trainer.trained.must_learn() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in judged if parameter.grad is not None]
        # A non-finite gradient counts here: the loss scaler (fp16) or NonFiniteCallback deals with it.
        if judged and not any(gradient.any() for gradient in gradients):
            raise NoGradientError(state.global_step + 1)
        self._warn_of_groups_without_gradient()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        self._steps += not getattr(optimizer, "step_was_skipped", False)

    def _warn_of_groups_without_gradient(self) -> None:
        has_gradient: dict[str, bool] = {}  # by group: whether one of its tensors has a gradient
        trained = self.trainer.trained
        for parameter, name in zip(trained.parameters, trained.names, strict=True):
            if parameter.requires_grad:
                has_gradient[name] = has_gradient.get(name, False) or parameter.grad is not None
        if without := [name for name, found in has_gradient.items() if not found]:
            logger.warning(
                f"No gradient reaches {len(without)} of {len(has_gradient)} groups at the first step, e.g. "
                f"{without[0]!r}. Part of the model's forward does not contribute to its output, or runs under "
                "torch.no_grad()."
            )


# Activation checkpoints


@contextmanager
def reentrant_checkpoints(model: nn.Module) -> Iterator[None]:
    """Makes reentrant activation checkpoints of transformers' layers pass a gradient on.

    A reentrant checkpoint passes a gradient on only if one of its inputs requires one. The base is frozen, so that
    the input of the first block does not. transformers' own remedy is a hook on the input embeddings, which not every
    model exposes. Here every such checkpoint gets one more input, which requires a gradient and is not used. The
    backward pass then need not go below the first block that trains. It does not matter how the checkpoints were
    switched on.

    Args:
        model (`torch.nn.Module`):
            The model to train.
    """
    changed = [(module, vars(module)[_CHECKPOINTING_FUNCTION]) for module in _reentrant_modules(model)]
    for module, function in changed:
        setattr(module, _CHECKPOINTING_FUNCTION, _WithGradient(function))
    try:
        yield
    finally:
        for module, function in changed:
            setattr(module, _CHECKPOINTING_FUNCTION, function)


def check_checkpointing(args: GSLoraTrainingArguments, model: nn.Module) -> None:
    """Checks that no reentrant checkpoint hides parameters from DDP's search for unused ones.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments.
        model (`torch.nn.Module`):
            The model to train.

    Raises:
        InvalidInputError: If one does, with several processes and unless `ddp_find_unused_parameters` is `False`.
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
                "use_reentrant=False with several processes: DDP takes what a reentrant checkpoint holds for unused",
                f"Give {name}_kwargs={{'use_reentrant': False}}, or the same to the model's own method.",
            )


def _reentrant_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        function = vars(module).get(_CHECKPOINTING_FUNCTION)
        keywords = getattr(function, "keywords", None)
        # Older versions of PyTorch take a missing `use_reentrant` for True.
        reentrant = keywords is not None and keywords.get("use_reentrant", True) is not False
        if reentrant and getattr(module, "gradient_checkpointing", False):
            yield module


class _WithGradient:
    """Calls a checkpointing function with one more input, which requires a gradient."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        places = (*getattr(layer, "args", ()), getattr(getattr(layer, "func", None), "__self__", None))
        module = next((place for place in places if isinstance(place, nn.Module)), None)
        given = any(isinstance(value, Tensor) and value.requires_grad for value in args)
        if module is not None and not given and not any(p.requires_grad for p in module.parameters()):
            return layer(*args, **kwargs)  # below the lowest block that trains there is nothing to compute again
        device = next((value.device for value in args if isinstance(value, Tensor)), None)
        unused = torch.zeros((), device=device, requires_grad=True)
        return self.function(lambda _, *inputs, **named: layer(*inputs, **named), unused, *args, **kwargs)
