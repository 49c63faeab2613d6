from .auto_classes import register_face_model as register_face_model
from .models import (
    bare as bare,
    batch_norm_frozen as batch_norm_frozen,
    has_tied_heads as has_tied_heads,
    head_tying_hidden as head_tying_hidden,
    is_foreign as is_foreign,
    reference_model as reference_model,
    refuse_quantised as refuse_quantised,
    uncompiled as uncompiled,
    unwrapped as unwrapped,
)

__all__ = [
    "bare",
    "batch_norm_frozen",
    "has_tied_heads",
    "head_tying_hidden",
    "is_foreign",
    "reference_model",
    "refuse_quantised",
    "register_face_model",
    "uncompiled",
    "unwrapped",
]
