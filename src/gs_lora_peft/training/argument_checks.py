"""Checks of what a trainer is made with, before any data is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from ..checking import ClassName, checked, ordered_list
from ..errors import InvalidInputError
from ..tuner import GSLoraConfig
from .arguments import GSLoraTrainingArguments

_OPTIONS = "Give the same options to {}."
_MODEL = Annotated[InstanceOf[nn.Module], Field(description="a model (torch.nn.Module)")]
_FUNCTION = Annotated[Callable[..., Any], Field(description="a function, or another object that can be called")]
# Of the arguments that several classes take: the type, and what to do.
_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "args": (
        Annotated[InstanceOf[GSLoraTrainingArguments], Field(description="GSLoraTrainingArguments")],
        _OPTIONS.format("GSLoraTrainingArguments('out', ...)"),
    ),
    "config": (
        Annotated[InstanceOf[GSLoraConfig], Field(description="a GSLoraConfig")],
        _OPTIONS.format("GSLoraConfig(...)"),
    ),
    "model": (_MODEL, "Load it with from_pretrained."),
    "base_model": (_MODEL, "Load it with from_pretrained."),
    "label_column": (Annotated[ClassName, Field(description="the name of a column")], "Name that of the labels."),
    "data_collator": (_FUNCTION, "Leave it out, or pass a function from a list of samples to a batch."),
    "augment": (_FUNCTION, "Leave it out, or pass a function from an image to a view of it."),
    "callbacks": (
        Annotated[
            list[InstanceOf[TrainerCallback] | type[TrainerCallback]],
            BeforeValidator(ordered_list),
            Field(description="a list of TrainerCallback"),
        ],
        "Pass a list of callbacks.",
    ),
}


def check_types(**given: Any) -> None:
    """Checks the types of arguments that several classes take; what is `None` was not given.

    Args:
        given (`Any`): The arguments by name. The models, `args`, `config` and `label_column` have to be given.

    Raises:
        InvalidInputError: One is of another type.
    """
    for name, value in given.items():
        if value is not None or name in ("model", "base_model", "args", "config", "label_column"):
            kind, fix = _ARGUMENTS[name]
            checked(name, value, kind, fix=fix)


def check_arguments(args: Any, eval_dataset: Any, kwargs: dict[str, Any]) -> None:
    """Looks at what the trainer was given, before anything is read.

    Raises:
        InvalidInputError: if something is given that has no place here, or evaluation during training has nothing to
            evaluate on.
    """
    for name in ("train_dataset", "compute_loss_func"):
        if kwargs.get(name) is not None:
            raise InvalidInputError(
                name,
                kwargs[name],
                "None: pairs of `retain_dataset` and `forget_dataset` are trained on, with the method's loss",
                "Leave it out.",
            )
    if args.eval_on_start and eval_dataset is None and args.validation_fraction == 0:
        raise InvalidInputError(
            "eval_on_start", True, "False without anything to evaluate on", "Give `eval_dataset`, or leave it out."
        )
    if args.eval_strategy != "no" and eval_dataset is None and args.validation_fraction == 0:
        raise InvalidInputError(
            "eval_strategy",
            IntervalStrategy(args.eval_strategy).value,
            "'no' without anything to evaluate on",
            "Give `eval_dataset`, or hold a part of the training data out with `validation_fraction` (never the test "
            "data). Hold annotated boxes out with train_validation_split instead, for the trainer's `eval_dataset`; a "
            "ContinualForgetter scores detectors after each task alone.",
        )


def check_model(model: Any, model_init: Any, objective: Any, kwargs: dict[str, Any]) -> None:
    """There must be one model, or what makes models, and then nothing that belongs to a single one.

    Raises:
        InvalidInputError: if not.
    """
    if (model is None) == (model_init is None):
        given = "both" if model is not None else None
        fix = "Wrap one with get_peft_model(model, GSLoraConfig(...)); `model_init` is for hyperparameter_search."
        raise InvalidInputError("model", given, "a model with its adapter, or `model_init`, which makes one", fix)
    if model_init is None:
        return
    if objective is not None:
        fix = "Leave it out; the arguments say what it should be."
        raise InvalidInputError("objective", objective, "None with `model_init`: it may belong to one model", fix)
    if any(part is not None for part in kwargs.get("optimizers") or ()):
        fix = "Choose it with `optim`, or give `optimizer_cls_and_kwargs`."
        raise InvalidInputError("optimizers", kwargs["optimizers"], "none with `model_init`: they hold one model", fix)
