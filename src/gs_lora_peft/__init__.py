"""Continual forgetting for pre-trained models: GS-LoRA as a PEFT adapter and a Trainer.

`import gs_lora_peft` makes the tuner type `GS_LORA` known to PEFT, as soon as PEFT itself is imported, and the face
model to transformers' Auto classes. Everything else is imported on first use.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from .auto_classes import register_face_model

if TYPE_CHECKING:
    from .data import ForgettingSplit, split_dataset
    from .hub import export_forgotten, fetch_sequence, merge_forgotten, push_to_hub, verify_repository
    from .methods import GSLoraTrainer
    from .metrics import (
        ContinualDetection,
        ContinualForgetting,
        detection_scores,
        verification_by_role,
        verification_scores,
    )
    from .models import FaceTransformerConfig, FaceTransformerForRecognition, convert_face_checkpoint
    from .sequence import (
        ContinualForgetter,
        ForgetRequest,
        ForgettingLedger,
        LedgerError,
        OtherSettingsError,
        load_forgotten,
        parse_classes,
        parse_requests,
        weights_fingerprint,
    )
    from .training import GSLoraTrainingArguments, NoGradientError, NonFiniteLossError, NoStepError
    from .tuner import GSLoraConfig, GSLoraModel, LoraGroups, NoFFNFoundError, export_lora, find_ffn_blocks

__version__ = version("gs-lora-peft")

_LAZY = {
    "ContinualDetection": "metrics",
    "ContinualForgetter": "sequence",
    "ContinualForgetting": "metrics",
    "FaceTransformerConfig": "models",
    "FaceTransformerForRecognition": "models",
    "ForgetRequest": "sequence",
    "ForgettingLedger": "sequence",
    "ForgettingSplit": "data",
    "GSLoraConfig": "tuner",
    "GSLoraModel": "tuner",
    "GSLoraTrainer": "methods",
    "GSLoraTrainingArguments": "training",
    "LedgerError": "sequence",
    "OtherSettingsError": "sequence",
    "LoraGroups": "tuner",
    "NoFFNFoundError": "tuner",
    "NoGradientError": "training",
    "NoStepError": "training",
    "NonFiniteLossError": "training",
    "convert_face_checkpoint": "models",
    "detection_scores": "metrics",
    "export_forgotten": "hub",
    "export_lora": "tuner",
    "fetch_sequence": "hub",
    "find_ffn_blocks": "tuner",
    "load_forgotten": "sequence",
    "merge_forgotten": "hub",
    "parse_classes": "sequence",
    "parse_requests": "sequence",
    "push_to_hub": "hub",
    "split_dataset": "data",
    "verification_by_role": "metrics",
    "verification_scores": "metrics",
    "verify_repository": "hub",
    "weights_fingerprint": "sequence",
}

__all__ = [
    "ContinualDetection",
    "ContinualForgetter",
    "ContinualForgetting",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "ForgetRequest",
    "ForgettingLedger",
    "ForgettingSplit",
    "GSLoraConfig",
    "GSLoraModel",
    "GSLoraTrainer",
    "GSLoraTrainingArguments",
    "LedgerError",
    "LoraGroups",
    "NoFFNFoundError",
    "NoGradientError",
    "NoStepError",
    "NonFiniteLossError",
    "OtherSettingsError",
    "convert_face_checkpoint",
    "detection_scores",
    "export_forgotten",
    "export_lora",
    "fetch_sequence",
    "find_ffn_blocks",
    "load_forgotten",
    "merge_forgotten",
    "parse_classes",
    "parse_requests",
    "push_to_hub",
    "split_dataset",
    "verification_by_role",
    "verification_scores",
    "verify_repository",
    "weights_fingerprint",
]


def __getattr__(name: str) -> Any:
    # torch, PEFT, the Trainer and `datasets` take seconds to import; reading a ledger needs none of them.
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# Importing a room imports torch, and not every import of this package has to wait for that. The tuner follows PEFT:
# when the hook runs, PEFT is complete and has imported all that the tuner needs. No hook imports the face model:
# transformers finds it by name.
when_imported("peft")(lambda module: import_module(".tuner", __name__))
register_face_model()
