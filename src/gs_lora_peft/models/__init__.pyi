from .face.configuration import FaceTransformerConfig as FaceTransformerConfig
from .face.conversion import convert_face_checkpoint as convert_face_checkpoint
from .face.modeling import (
    FaceTransformerForRecognition as FaceTransformerForRecognition,
    FaceTransformerModel as FaceTransformerModel,
)
from .face.processing import FaceImageProcessor as FaceImageProcessor

__all__ = [
    "FaceImageProcessor",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "FaceTransformerModel",
    "convert_face_checkpoint",
]
