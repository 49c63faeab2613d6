"""Which objective suits a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .base import Objective
from .classification import ClassificationObjective
from .detection import DetectionObjective, is_detector
from .distillation import DistillationObjective
from .embedding import find_head
from .heads import check_class_head, head_size
from .prototypes import PrototypeObjective

DISTILLATION_WEIGHT = 1.0  # w_d by default where classes have no training data; docs/benchmarks.md


def objective_for(
    model: nn.Module,
    args: Any,
    *,
    forget_classes: Sequence[int] = (),
    missing_classes: Sequence[int] = (),
    adapter: str = "default",
) -> Objective:
    """The objective that fits the structure of a model: [`DetectionObjective`] for a detector of transformers, else
    [`ClassificationObjective`]. Prototypes wrap it in a [`PrototypeObjective`], distillation in a
    [`DistillationObjective`].

    Args:
        model (`torch.nn.Module`): the model to train, a `PeftModel` or a bare one.
        args ([`GSLoraTrainingArguments`]): weights, bounds and kinds of the losses.
        forget_classes (`Sequence[int]`, *optional*, defaults to none): classes to forget, which distillation leaves
            out.
        missing_classes (`Sequence[int]`, *optional*, defaults to none): classes to keep without training data, which a
            classifier leaves out of its losses, and holds by distillation.
        adapter (`str`, *optional*, defaults to `"default"`): the adapter that trains.

    Returns:
        [`Objective`]

    Raises:
        InvalidInputError: if the model has no class head, see [`check_class_head`].
        NoEmbeddingFoundError: if prototypes are asked for and the model's embedding cannot be found.
        ValueError: if a detector's loss cannot be split, or views of samples are asked for where no sample is looked
            at (a detector's prototypes are rows of its head), or distillation is asked for of a detector.
    """
    check_class_head(model)
    if is_detector(model):
        return _of_detector(model, args)
    objective: Objective = ClassificationObjective(
        args.forget_weight, args.forget_bound, args.forget_loss, missing_classes
    )
    if args.prototype_forget_weight or args.prototype_retain_weight:
        find_head(model)
        objective = PrototypeObjective(
            objective,
            forget_weight=args.prototype_forget_weight,
            retain_weight=args.prototype_retain_weight,
            bound=args.prototype_bound,
            distance=args.prototype_distance,
        )
    weight = args.distillation_weight
    if weight == "auto":
        weight = DISTILLATION_WEIGHT if missing_classes else 0.0
    num_labels = head_size(model)
    if num_labels is not None and num_labels - len(set(forget_classes)) < 2:
        weight = 0.0  # where one class is left there is nothing to hold
    if not weight:
        return objective
    # Outermost, for its second forward goes through the head, too.
    return DistillationObjective(objective, weight, adapter, forget_classes, retain_only=not missing_classes)


def _of_detector(model: nn.Module, args: Any) -> DetectionObjective:
    if args.distillation_weight not in ("auto", 0):
        raise ValueError(
            f"`distillation_weight`={args.distillation_weight} has nothing to act on: a detector gives no logits for "
            "a whole image. Leave it at 'auto'."
        )
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
