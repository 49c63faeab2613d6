"""Models for what transformers has no classes for. `auto_classes.py` makes them known to its Auto classes."""

from .face import (
    FaceImageProcessor,
    FaceTransformerConfig,
    FaceTransformerForRecognition,
    FaceTransformerModel,
    convert_face_checkpoint,
)

__all__ = [
    "FaceImageProcessor",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "FaceTransformerModel",
    "convert_face_checkpoint",
]
