from .base import ClassificationScoring as ClassificationScoring
from .base import ClassRoles as ClassRoles
from .base import Objective as Objective
from .base import ObjectiveOutput as ObjectiveOutput
from .base import Scoring as Scoring
from .classification import ClassificationObjective as ClassificationObjective
from .classification import ForgetLoss as ForgetLoss
from .classification import auto_forget_bound as auto_forget_bound
from .classification import bounded_cross_entropy as bounded_cross_entropy
from .classification import log_odds_against as log_odds_against
from .classification import logits_of as logits_of
from .detection.objective import Background as Background
from .detection.objective import DetectionObjective as DetectionObjective
from .heads import NoEmbeddingFoundError as NoEmbeddingFoundError
from .heads import captured_embeddings as captured_embeddings
from .heads import check_class_head as check_class_head
from .heads import find_head as find_head
from .heads import head_size as head_size
from .heads import is_detector as is_detector
from .registry import OBJECTIVES as OBJECTIVES
from .registry import Kind as Kind
from .registry import Task as Task
from .registry import kind_of as kind_of
from .registry import objective_for as objective_for
from .terms import ClassPrototypes as ClassPrototypes
from .terms import DistillationObjective as DistillationObjective
from .terms import PrototypeDistance as PrototypeDistance
from .terms import PrototypeObjective as PrototypeObjective
from .terms import distillation_loss as distillation_loss
from .terms import embedding_distances as embedding_distances

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
    "bounded_cross_entropy",
    "captured_embeddings",
    "check_class_head",
    "distillation_loss",
    "embedding_distances",
    "find_head",
    "head_size",
    "is_detector",
    "kind_of",
    "log_odds_against",
    "logits_of",
    "objective_for",
]
