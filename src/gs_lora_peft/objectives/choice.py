"""Which objective suits a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Objective
from .classification import ClassificationObjective
from .embedding import find_head
from .prototypes import PrototypeObjective


def objective_for(model: nn.Module, args: Any) -> Objective:
    """The objective for a kind of model, told by its structure.

    Args:
        model (`torch.nn.Module`): the model to train, a `PeftModel` or a bare one.
        args ([`GSLoraTrainingArguments`]): weights, bounds and kinds of the losses.

    Returns:
        [`Objective`]

    Raises:
        NoEmbeddingFoundError: if prototypes are asked for and the model's embedding cannot be found.
    """
    objective = ClassificationObjective(args.forget_weight, args.forget_bound, args.forget_loss)
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
