"""What "forget" and "retain" mean for a kind of model."""

from .base import Objective, ObjectiveOutput
from .before_task import before_the_task
from .choice import OBJECTIVES, kind_of, objective_for
from .classification import (
    ClassificationObjective,
    ForgetLoss,
    auto_forget_bound,
    bounded_cross_entropy,
    log_odds_against,
)
from .detection import Background, DetectionObjective, is_detector
from .distillation import DistillationObjective, distillation_loss
from .embedding import NoEmbeddingFoundError, caught_embeddings, find_head
from .heads import check_class_head, head_size
from .kind import Kind, Task
from .prototypes import ClassPrototypes, PrototypeDistance, PrototypeObjective, embedding_distances
from .scoring import ClassificationScoring, ClassRoles, Scoring

__all__ = [
    "OBJECTIVES",
    "Background",
    "ClassPrototypes",
    "ClassRoles",
    "ClassificationObjective",
    "ClassificationScoring",
    "DetectionObjective",
    "DistillationObjective",
    "ForgetLoss",
    "Kind",
    "NoEmbeddingFoundError",
    "Objective",
    "ObjectiveOutput",
    "PrototypeDistance",
    "PrototypeObjective",
    "Scoring",
    "Task",
    "auto_forget_bound",
    "before_the_task",
    "bounded_cross_entropy",
    "caught_embeddings",
    "check_class_head",
    "distillation_loss",
    "embedding_distances",
    "find_head",
    "head_size",
    "is_detector",
    "kind_of",
    "log_odds_against",
    "objective_for",
]
