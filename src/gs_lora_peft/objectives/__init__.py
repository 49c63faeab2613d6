"""What "forget" and "retain" mean for a kind of model."""

from .base import Objective, ObjectiveOutput
from .choice import objective_for
from .classification import (
    ClassificationObjective,
    ForgetLoss,
    auto_forget_bound,
    bounded_cross_entropy,
    log_odds_against,
)
from .embedding import NoEmbeddingFoundError, caught_embeddings, find_head
from .prototypes import ClassPrototypes, PrototypeDistance, PrototypeObjective, embedding_distances

__all__ = [
    "ClassPrototypes",
    "ClassificationObjective",
    "ForgetLoss",
    "NoEmbeddingFoundError",
    "Objective",
    "ObjectiveOutput",
    "PrototypeDistance",
    "PrototypeObjective",
    "auto_forget_bound",
    "bounded_cross_entropy",
    "caught_embeddings",
    "embedding_distances",
    "find_head",
    "log_odds_against",
    "objective_for",
]
