"""Which objective suits a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .base import Objective
from .classification import ClassificationObjective
from .detection import DetectionObjective, is_detector
from .embedding import find_head
from .prototypes import PrototypeObjective


def objective_for(model: nn.Module, args: Any, missing_classes: Sequence[int] = ()) -> Objective:
    """The objective for a kind of model, told by its structure: [`DetectionObjective`] for a detector of transformers,
    else [`ClassificationObjective`], with prototypes in a [`PrototypeObjective`].

    Args:
        model (`torch.nn.Module`): the model to train, a `PeftModel` or a bare one.
        args ([`GSLoraTrainingArguments`]): weights, bounds and kinds of the losses.
        missing_classes (`Sequence[int]`, *optional*, defaults to none): classes to keep without training data, which a
            classifier leaves out of its losses.

    Returns:
        [`Objective`]

    Raises:
        NoEmbeddingFoundError: if prototypes are asked for and the model's embedding cannot be found.
        ValueError: if a detector's loss cannot be split, or views of samples are asked for where no sample is looked
            at: a detector's prototypes are rows of its head.
    """
    if is_detector(model):
        return _of_detector(model, args)
    objective = ClassificationObjective(args.forget_weight, args.forget_bound, args.forget_loss, missing_classes)
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


def _of_detector(model: nn.Module, args: Any) -> DetectionObjective:
    if args.prototype_augmentations:
        raise ValueError(
            f"`prototype_augmentations`={args.prototype_augmentations} has nothing to act on: the prototypes of a "
            "detector are the rows of its classification head. Leave it at 0."
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
