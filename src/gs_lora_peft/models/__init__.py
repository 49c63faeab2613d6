"""Models for what transformers has no classes for. Importing this package makes them known to its Auto classes."""

from .face import FaceTransformerConfig, FaceTransformerForRecognition, FaceTransformerModel, convert_face_checkpoint

__all__ = [
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "FaceTransformerModel",
    "convert_face_checkpoint",
]
