from .detections import draw_detections as draw_detections, has_objects as has_objects
from .faces import (
    FaceAudit as FaceAudit,
    FacePredictions as FacePredictions,
    audit_faces as audit_faces,
    face_predictions as face_predictions,
    format_face_audit as format_face_audit,
)
from .pictures import PICTURES_FOLDER as PICTURES_FOLDER, draw_face_pictures as draw_face_pictures

__all__ = [
    "PICTURES_FOLDER",
    "FaceAudit",
    "FacePredictions",
    "audit_faces",
    "draw_detections",
    "draw_face_pictures",
    "face_predictions",
    "format_face_audit",
    "has_objects",
]
