"""Is it really forgotten? What a finished run knows and no longer knows, looked at from outside."""

from .detections import draw_detections
from .faces import FaceAnswers, FaceAudit, audit_faces, face_answers
from .pictures import PICTURES_FOLDER, draw_face_pictures
from .table import format_face_audit

__all__ = [
    "PICTURES_FOLDER",
    "FaceAnswers",
    "FaceAudit",
    "audit_faces",
    "draw_detections",
    "draw_face_pictures",
    "face_answers",
    "format_face_audit",
]
