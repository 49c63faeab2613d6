from .attacks.probes import AMONG_ALL as AMONG_ALL
from .auditing import Auditor as Auditor, audit_models as audit_models, audit_run as audit_run
from .base import Attack as Attack, AuditContext as AuditContext, Measurement as Measurement
from .detections import draw_detections as draw_detections, has_objects as has_objects
from .faces import (
    FaceAudit as FaceAudit,
    FacePredictions as FacePredictions,
    audit_faces as audit_faces,
    face_predictions as face_predictions,
    format_face_audit as format_face_audit,
)
from .opening import OpenedRun as OpenedRun, open_run as open_run
from .page import format_audit as format_audit
from .pictures import PICTURES_FOLDER as PICTURES_FOLDER, draw_face_pictures as draw_face_pictures
from .registry import ATTACKS as ATTACKS, get_attacks as get_attacks
from .report import AuditReport as AuditReport
from .results import Comparison as Comparison, RecoveryGap as RecoveryGap
from .retraining.recipe import RetrainRecipe as RetrainRecipe
from .retraining.retrain import retrain as retrain, retrained_models as retrained_models
from .samples import Samples as Samples
from .subjects import LOGITS as LOGITS, Subject as Subject

__all__ = [
    "AMONG_ALL",
    "ATTACKS",
    "LOGITS",
    "PICTURES_FOLDER",
    "Attack",
    "AuditContext",
    "AuditReport",
    "Auditor",
    "Comparison",
    "FaceAudit",
    "FacePredictions",
    "Measurement",
    "OpenedRun",
    "RecoveryGap",
    "RetrainRecipe",
    "Samples",
    "Subject",
    "audit_faces",
    "audit_models",
    "audit_run",
    "draw_detections",
    "draw_face_pictures",
    "face_predictions",
    "format_audit",
    "format_face_audit",
    "get_attacks",
    "has_objects",
    "open_run",
    "retrain",
    "retrained_models",
]
