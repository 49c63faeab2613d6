from .adapters import weights_fingerprint as weights_fingerprint
from .audit import AuditReport as AuditReport, audit_models as audit_models, audit_run as audit_run
from .data import ForgettingSplit as ForgettingSplit, split_dataset as split_dataset
from .hub import (
    export_forgotten as export_forgotten,
    fetch_run as fetch_run,
    load_forgotten as load_forgotten,
    merge_forgotten as merge_forgotten,
    push_to_hub as push_to_hub,
    verify_repository as verify_repository,
)
from .ledger import (
    ForgetRequest as ForgetRequest,
    ForgettingLedger as ForgettingLedger,
    LedgerError as LedgerError,
    parse_classes as parse_classes,
    parse_requests as parse_requests,
)
from .methods import GSLoraTrainer as GSLoraTrainer, get_method as get_method
from .metrics import (
    ContinualDetection as ContinualDetection,
    ContinualForgetting as ContinualForgetting,
    detection_scores as detection_scores,
    verification_by_role as verification_by_role,
    verification_scores as verification_scores,
)
from .models import (
    FaceTransformerConfig as FaceTransformerConfig,
    FaceTransformerForRecognition as FaceTransformerForRecognition,
    convert_face_checkpoint as convert_face_checkpoint,
)
from .runs import ContinualForgetter as ContinualForgetter, OtherSettingsError as OtherSettingsError
from .training import (
    ForgettingTrainer as ForgettingTrainer,
    GSLoraTrainingArguments as GSLoraTrainingArguments,
    Method as Method,
    NoGradientError as NoGradientError,
    NonFiniteLossError as NonFiniteLossError,
    NoStepError as NoStepError,
)
from .tuner import (
    GSLoraConfig as GSLoraConfig,
    GSLoraModel as GSLoraModel,
    LoraGroups as LoraGroups,
    NoFFNFoundError as NoFFNFoundError,
    export_lora as export_lora,
    find_ffn_blocks as find_ffn_blocks,
)

__version__: str

__all__ = [
    "AuditReport",
    "ContinualDetection",
    "ContinualForgetter",
    "ContinualForgetting",
    "FaceTransformerConfig",
    "FaceTransformerForRecognition",
    "ForgetRequest",
    "ForgettingLedger",
    "ForgettingSplit",
    "ForgettingTrainer",
    "GSLoraConfig",
    "GSLoraModel",
    "GSLoraTrainer",
    "GSLoraTrainingArguments",
    "LedgerError",
    "LoraGroups",
    "Method",
    "NoFFNFoundError",
    "NoGradientError",
    "NoStepError",
    "NonFiniteLossError",
    "OtherSettingsError",
    "audit_models",
    "audit_run",
    "convert_face_checkpoint",
    "detection_scores",
    "export_forgotten",
    "export_lora",
    "fetch_run",
    "find_ffn_blocks",
    "get_method",
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
