from .face.configuration import FaceTransformerConfig as FaceTransformerConfig
from .face.conversion import convert_face_checkpoint as convert_face_checkpoint
from .face.modeling import (
    FaceTransformerForRecognition as FaceTransformerForRecognition,
    FaceTransformerModel as FaceTransformerModel,
)
from .face.processing import FaceImageProcessor as FaceImageProcessor
from .vit import small_vit as small_vit

__all__ = [
    "FaceImageProcessor",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "FaceTransformerModel",
    "convert_face_checkpoint",
    "small_vit",
]
