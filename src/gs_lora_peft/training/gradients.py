"""Whether what trains gets a gradient: reentrant checkpoints are made to give one; a broken graph is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import InvalidInputError
from .base import TaskTrainer
from .checks import NoGradientError, NoStepError

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
        model (`torch.nn.Module`): the model to train.
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
        args ([`GSLoraTrainingArguments`]): the arguments.
        model (`torch.nn.Module`): the model to train.

    Raises:
        InvalidInputError: with several processes, unless `ddp_find_unused_parameters` is `False`.
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
        trainer ([`TaskTrainer`]): the trainer that runs.
        takes_steps (`bool`, *optional*, defaults to `True`): whether the method changes weights by optimizer steps.
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
        # Not finite is another matter: of the loss scaler (fp16), or of FiniteCallback.
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
