"""What "forget" and "retain" mean for a kind of model."""

from .classification import (
    ClassificationObjective,
    ForgetLoss,
    ObjectiveOutput,
    auto_forget_bound,
    bounded_cross_entropy,
    log_odds_against,
)

__all__ = [
    "ClassificationObjective",
    "ForgetLoss",
    "ObjectiveOutput",
    "auto_forget_bound",
    "bounded_cross_entropy",
    "log_odds_against",
]
