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
from .detection import Background, DetectionObjective, is_detector
from .embedding import NoEmbeddingFoundError, caught_embeddings, find_head
from .prototypes import ClassPrototypes, PrototypeDistance, PrototypeObjective, embedding_distances
from .scoring import ClassificationScoring, ClassRoles, Scoring

__all__ = [
    "Background",
    "ClassPrototypes",
    "ClassRoles",
    "ClassificationObjective",
    "ClassificationScoring",
    "DetectionObjective",
    "ForgetLoss",
    "NoEmbeddingFoundError",
    "Objective",
    "ObjectiveOutput",
    "PrototypeDistance",
    "PrototypeObjective",
    "Scoring",
    "auto_forget_bound",
    "bounded_cross_entropy",
    "caught_embeddings",
    "embedding_distances",
    "find_head",
    "is_detector",
    "log_odds_against",
    "objective_for",
]
