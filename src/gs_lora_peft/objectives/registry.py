"""Kinds of models, their objectives by name, and which of them suits a model."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InvalidInputError
from ..roles import ClassRoles
from .base import Objective
from .classification import ClassificationObjective
from .detection.objective import DetectionObjective
from .heads import check_class_head, find_head, head_size, is_detector
from .terms import DistillationObjective, PrototypeObjective


@dataclass(frozen=True)
class Task:
    """What an objective is told of the task besides the arguments.

    Args:
        roles ([`ClassRoles`], *optional*, defaults to none):
            The classes by role.
        adapter (`str`, *optional*):
            The adapter that trains; `None` where the model's own weights do.
    """

    roles: ClassRoles = ClassRoles()
    adapter: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        fits (`Callable`):
            From a model, a `PeftModel` or a bare one, to whether it is of this kind.
        make (`Callable`):
            From the model, the [`GSLoraTrainingArguments`] and the [`Task`] to the [`Objective`].
        check (`Callable`, *optional*, defaults to [`check_class_head`]):
            Refuses a model of this kind that cannot be trained, before any data is read.
    """

    fits: Callable[[nn.Module], bool]
    make: Callable[[nn.Module, Any, Task], Objective]
    check: Callable[[nn.Module], None] = check_class_head


DISTILLATION_WEIGHT = 1.0  # w_d by default where classes have no training data; docs/benchmarks.md


def _classification(model: nn.Module, args: Any, task: Task) -> Objective:
    objective: Objective = ClassificationObjective(
        args.forget_weight, args.forget_bound, args.forget_loss, task.roles.missing
    )
    return with_distillation(with_prototypes(objective, model, args), model, args, task)


def with_prototypes(objective: Objective, model: nn.Module, args: Any) -> Objective:
    """A classifier's objective with the terms of prototypes, where their weights ask for them.

    Raises:
        NoEmbeddingFoundError: If they do, and the model's embedding cannot be found.
    """
    if not args.prototype_forget_weight and not args.prototype_retain_weight:
        return objective
    find_head(model)
    return PrototypeObjective(
        objective,
        forget_weight=args.prototype_forget_weight,
        retain_weight=args.prototype_retain_weight,
        bound=args.prototype_bound,
        distance=args.prototype_distance,
    )


def with_distillation(objective: Objective, model: nn.Module, args: Any, task: Task) -> Objective:
    """A classifier's objective with distillation, where its weight asks for it; the outermost, because its second
    forward goes through the head, too.

    Raises:
        InvalidInputError: If it is asked for where no adapter trains, which could be taken off for the earlier model.
    """
    weight = args.distillation_weight
    if task.adapter is None:
        if weight not in ("auto", 0):
            raise _nothing_to_distil(weight, "the model's own weights train, so that the earlier model is gone")
        return objective
    if weight == "auto":
        weight = DISTILLATION_WEIGHT if task.roles.missing else 0.0
    num_labels = head_size(model)
    if num_labels is not None and num_labels - len(task.roles.forget) < 2:
        weight = 0.0  # where one class is left there is nothing to hold
    if not weight:
        return objective
    return DistillationObjective(
        objective, weight, task.adapter, task.roles.forget, retain_only=not task.roles.missing
    )


def _detection(model: nn.Module, args: Any, task: Task) -> Objective:
    if args.distillation_weight not in ("auto", 0):
        raise _nothing_to_distil(args.distillation_weight, "a detector gives no logits for a whole image")
    if args.prototype_augmentations:
        raise InvalidInputError(
            "prototype_augmentations",
            args.prototype_augmentations,
            "0: the prototypes of a detector are the rows of its classification head, no sample is looked at",
            "Leave it out.",
        )
    return DetectionObjective(
        model,
        args.forget_weight,
        args.forget_bound,
        args.forget_loss,
        background=args.background,
        prototype_forget_weight=args.prototype_forget_weight,
        prototype_retain_weight=args.prototype_retain_weight,
        prototype_bound=args.prototype_bound,
        prototype_distance=args.prototype_distance,
    )


def _nothing_to_distil(weight: Any, why: str) -> InvalidInputError:
    return InvalidInputError("distillation_weight", weight, f"'auto' or 0: {why}", "Leave it out.")


# Asked in this order, so that the last one fits every model. "module:name" of a `Kind` is imported when it is asked.
OBJECTIVES: dict[str, Kind | str] = {
    "detection": Kind(is_detector, _detection),
    "classification": Kind(lambda model: True, _classification),
}


def kind_of(model: nn.Module, name: str | None = None) -> Kind:
    """The kind of a model: the first one in `OBJECTIVES` that it fits, or the one that is named.

    Args:
        model (`torch.nn.Module`):
            A `PeftModel` or a bare model.
        name (`str`, *optional*):
            A name in `OBJECTIVES`, for a model whose class does not tell.

    Raises:
        InvalidInputError: If no kind is called so.
    """
    if name is not None:
        if name not in OBJECTIVES:
            raise InvalidInputError("objective", name, f"an Objective, or one of {list(OBJECTIVES)}")
        return _loaded(OBJECTIVES[name])
    return next(kind for kind in map(_loaded, OBJECTIVES.values()) if kind.fits(model))


def _loaded(kind: Kind | str) -> Kind:
    return pkgutil.resolve_name(kind) if isinstance(kind, str) else kind


def objective_for(
    model: nn.Module,
    args: Any,
    *,
    roles: ClassRoles = ClassRoles(),
    adapter: str | None = "default",
    kind: str | None = None,
) -> Objective:
    """The objective that fits the structure of a model: [`DetectionObjective`] for a detector of transformers, else
    [`ClassificationObjective`]. Prototypes wrap it in a [`PrototypeObjective`], distillation in a
    [`DistillationObjective`].

    Args:
        model (`torch.nn.Module`):
            The model to train, a `PeftModel` or a bare one.
        args ([`GSLoraTrainingArguments`]):
            Weights, bounds and kinds of the losses.
        roles ([`ClassRoles`], *optional*, defaults to none):
            The classes by role. Distillation leaves out those to forget. A classifier leaves the missing ones out of
            its losses, and holds them by distillation.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains; `None` where the model's own weights do.
        kind (`str`, *optional*):
            The name of a kind in `OBJECTIVES`, instead of the first one that fits.

    Returns:
        [`Objective`]

    Raises:
        InvalidInputError: If the model has no class head, see [`check_class_head`], or views of samples are asked for
            where no sample is looked at (a detector's prototypes are rows of its head), or distillation is asked for
            of a detector or without an adapter.
        NoEmbeddingFoundError: If prototypes are asked for and the model's embedding cannot be found.
        ValueError: If a detector's loss cannot be split.
    """
    chosen = kind_of(model, kind)
    chosen.check(model)
    return chosen.make(model, args, Task(roles, adapter))
