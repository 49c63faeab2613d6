"""Face Transformer: a ViT that recognises people by the angle between embeddings."""

from contextlib import suppress

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

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

AutoConfig.register(FaceTransformerConfig.model_type, FaceTransformerConfig, exist_ok=True)
AutoModel.register(FaceTransformerConfig, FaceTransformerModel, exist_ok=True)
AutoModelForImageClassification.register(FaceTransformerConfig, FaceTransformerForRecognition, exist_ok=True)
# Older versions of transformers have no AutoImageProcessor at all where torchvision is missing.
with suppress(ImportError):
    AutoImageProcessor.register(
        FaceTransformerConfig, image_processor_classes={"pil": FaceImageProcessor}, exist_ok=True
    )
