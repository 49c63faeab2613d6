from .boxes import (
    pack_boxes as pack_boxes,
    references_from_labels as references_from_labels,
    references_from_objects as references_from_objects,
    unpack_boxes as unpack_boxes,
)
from .continual_detection import ContinualDetection as ContinualDetection
from .continual_forgetting import ContinualForgetting as ContinualForgetting
from .detection import detection_scores as detection_scores
from .scores import (
    ACCURACY as ACCURACY,
    AVERAGE_PRECISION as AVERAGE_PRECISION,
    MetricName as MetricName,
    continual_forgetting_scores as continual_forgetting_scores,
    h_mean as h_mean,
    measure_of as measure_of,
)
from .verification import verification_by_role as verification_by_role, verification_scores as verification_scores

__all__ = [
    "ACCURACY",
    "AVERAGE_PRECISION",
    "ContinualDetection",
    "ContinualForgetting",
    "MetricName",
    "continual_forgetting_scores",
    "detection_scores",
    "h_mean",
    "measure_of",
    "pack_boxes",
    "references_from_labels",
    "references_from_objects",
    "unpack_boxes",
    "verification_by_role",
    "verification_scores",
]
