"""Face Transformer: a ViT that recognises people by the angle between embeddings."""

from .configuration import FaceTransformerConfig
from .conversion import convert_face_checkpoint
from .modeling import FaceRecognitionOutput, FaceTransformerForRecognition, FaceTransformerModel
from .processing import FaceImageProcessor

__all__ = [
    "FaceImageProcessor",
    "FaceRecognitionOutput",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "FaceTransformerModel",
    "convert_face_checkpoint",
]
