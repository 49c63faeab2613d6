"""What "forget" and "retain" mean for a kind of model."""

from .classification import (
    BoundPer,
    ClassificationObjective,
    ObjectiveOutput,
    auto_forget_bound,
    bounded_forget_loss,
)

__all__ = ["BoundPer", "ClassificationObjective", "ObjectiveOutput", "auto_forget_bound", "bounded_forget_loss"]
