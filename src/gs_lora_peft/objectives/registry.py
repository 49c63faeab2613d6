"""Kinds of models by name, and which of them fits a model."""

from __future__ import annotations

import pkgutil

from torch import nn

from ..errors import InvalidInputError
from ..roles import NO_ROLES, ClassRoles
from .base import Kind, LossArguments, Objective, Task
from .classification import CLASSIFICATION
from .detection.objective import DETECTION

# The first kind that fits is taken, and the last one fits every model. A "module:name" of a [`Kind`] is imported when
# it is needed.
OBJECTIVES: dict[str, Kind | str] = {
    "detection": DETECTION,
    "classification": CLASSIFICATION,
}


def kind_of(model: nn.Module, name: str | None = None) -> Kind:
    """The kind of a model: the first one in `OBJECTIVES` that fits it, or the named one.

    Args:
        model (`torch.nn.Module`):
            A `PeftModel` or a bare model.
        name (`str`, *optional*):
            A name in `OBJECTIVES`, for a model whose class does not show its kind.

    Returns:
        [`Kind`]: The kind.

    Raises:
        InvalidInputError: If `OBJECTIVES` does not have the name.
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
    args: LossArguments,
    *,
    roles: ClassRoles = NO_ROLES,
    adapter: str | None = "default",
    kind: str | None = None,
) -> Objective:
    """Builds the objective that fits a model.

    This is [`DetectionObjective`] for a detector of transformers, else [`ClassificationObjective`], which prototypes
    wrap in a [`PrototypeObjective`] and distillation in a [`DistillationObjective`].

    Args:
        model (`torch.nn.Module`):
            The model to train, a `PeftModel` or a bare one.
        args ([`GSLoraTrainingArguments`]):
            Weights, bounds and kinds of the losses.
        roles ([`ClassRoles`], *optional*, defaults to none):
            The classes by role. Distillation leaves out those to forget. A classifier leaves the missing ones out of
            its losses, and holds them by distillation.
        adapter (`str`, *optional*, defaults to `"default"`):
            The adapter that trains; `None` if the model's own weights train.
        kind (`str`, *optional*):
            The name of a kind in `OBJECTIVES`, instead of the first one that fits.

    Returns:
        [`Objective`]: The objective.

    Raises:
        InvalidInputError: If the model does not have a class head (see [`check_class_head`]); if `args` ask for
            augmented prototypes of a detector, whose prototypes are rows of its head; if they ask for distillation of
            a detector or without an adapter; or if a detector's loss cannot be split.
        NoEmbeddingFoundError: If `args` ask for prototypes and the model's embedding cannot be found.
    """
    chosen = kind_of(model, kind)
    chosen.check(model)
    return chosen.make(model, args, Task(roles, adapter))
