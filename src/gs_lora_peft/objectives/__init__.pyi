from .base import (
    ClassificationScoring as ClassificationScoring,
    Kind as Kind,
    LossArguments as LossArguments,
    LossMeter as LossMeter,
    Objective as Objective,
    ObjectiveOutput as ObjectiveOutput,
    Scoring as Scoring,
    Task as Task,
)
from .classification import ClassificationObjective as ClassificationObjective
from .depth import DepthObjective as DepthObjective, target_weights as target_weights
from .detection.by_boxes import matched_by_boxes as matched_by_boxes
from .detection.depth import QueryDepthObjective as QueryDepthObjective
from .detection.matching import (
    DetectionCriterion as DetectionCriterion,
    HeadRecorder as HeadRecorder,
    Matched as Matched,
)
from .detection.objective import Background as Background, DetectionObjective as DetectionObjective
from .detection.scoring import DetectionScoring as DetectionScoring, corners_of as corners_of
from .heads import (
    NoEmbeddingFoundError as NoEmbeddingFoundError,
    captured_embeddings as captured_embeddings,
    check_class_head as check_class_head,
    find_head as find_head,
    head_size as head_size,
    is_detector as is_detector,
    logits_of as logits_of,
)
from .losses import (
    DepthTarget as DepthTarget,
    ForgetLoss as ForgetLoss,
    GlobalMean as GlobalMean,
    PrototypeDistance as PrototypeDistance,
    auto_forget_bound as auto_forget_bound,
    bounded_cross_entropy as bounded_cross_entropy,
    distillation_loss as distillation_loss,
    embedding_distances as embedding_distances,
    identity as identity,
    log_odds_against as log_odds_against,
)
from .registry import OBJECTIVES as OBJECTIVES, kind_of as kind_of, objective_for as objective_for
from .states import (
    CapturedStates as CapturedStates,
    Pooling as Pooling,
    block_paths as block_paths,
    captured_states as captured_states,
    state_scales as state_scales,
)
from .terms import (
    ClassPrototypes as ClassPrototypes,
    DistillationObjective as DistillationObjective,
    PrototypeObjective as PrototypeObjective,
)
from .transport import StateSample as StateSample, TransportTargets as TransportTargets

__all__ = [
    "OBJECTIVES",
    "Background",
    "CapturedStates",
    "ClassPrototypes",
    "ClassificationObjective",
    "ClassificationScoring",
    "DepthObjective",
    "DepthTarget",
    "DetectionCriterion",
    "DetectionObjective",
    "DetectionScoring",
    "DistillationObjective",
    "ForgetLoss",
    "GlobalMean",
    "HeadRecorder",
    "Kind",
    "LossArguments",
    "LossMeter",
    "Matched",
    "NoEmbeddingFoundError",
    "Objective",
    "ObjectiveOutput",
    "Pooling",
    "PrototypeDistance",
    "PrototypeObjective",
    "QueryDepthObjective",
    "Scoring",
    "StateSample",
    "Task",
    "TransportTargets",
    "auto_forget_bound",
    "block_paths",
    "bounded_cross_entropy",
    "captured_embeddings",
    "captured_states",
    "check_class_head",
    "corners_of",
    "distillation_loss",
    "embedding_distances",
    "find_head",
    "head_size",
    "identity",
    "is_detector",
    "kind_of",
    "log_odds_against",
    "logits_of",
    "matched_by_boxes",
    "objective_for",
    "state_scales",
    "target_weights",
]
