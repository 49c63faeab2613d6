from .detections import draw_detections as draw_detections
from .faces import FaceAudit as FaceAudit
from .faces import FacePredictions as FacePredictions
from .faces import audit_faces as audit_faces
from .faces import face_predictions as face_predictions
from .faces import format_face_audit as format_face_audit
from .pictures import PICTURES_FOLDER as PICTURES_FOLDER
from .pictures import draw_face_pictures as draw_face_pictures

__all__ = [
    "PICTURES_FOLDER",
    "FaceAudit",
    "FacePredictions",
    "audit_faces",
    "draw_detections",
    "draw_face_pictures",
    "face_predictions",
    "format_face_audit",
]
