from .adapters import weights_fingerprint as weights_fingerprint
from .data import ForgettingSplit as ForgettingSplit
from .data import split_dataset as split_dataset
from .hub import export_forgotten as export_forgotten
from .hub import fetch_run as fetch_run
from .hub import load_forgotten as load_forgotten
from .hub import merge_forgotten as merge_forgotten
from .hub import push_to_hub as push_to_hub
from .hub import verify_repository as verify_repository
from .ledger import ForgetRequest as ForgetRequest
from .ledger import ForgettingLedger as ForgettingLedger
from .ledger import LedgerError as LedgerError
from .ledger import parse_classes as parse_classes
from .ledger import parse_requests as parse_requests
from .methods import GSLoraTrainer as GSLoraTrainer
from .metrics import ContinualDetection as ContinualDetection
from .metrics import ContinualForgetting as ContinualForgetting
from .metrics import detection_scores as detection_scores
from .metrics import verification_by_role as verification_by_role
from .metrics import verification_scores as verification_scores
from .models import FaceTransformerConfig as FaceTransformerConfig
from .models import FaceTransformerForRecognition as FaceTransformerForRecognition
from .models import convert_face_checkpoint as convert_face_checkpoint
from .runs import ContinualForgetter as ContinualForgetter
from .runs import OtherSettingsError as OtherSettingsError
from .training import GSLoraTrainingArguments as GSLoraTrainingArguments
from .training import NoGradientError as NoGradientError
from .training import NonFiniteLossError as NonFiniteLossError
from .training import NoStepError as NoStepError
from .tuner import GSLoraConfig as GSLoraConfig
from .tuner import GSLoraModel as GSLoraModel
from .tuner import LoraGroups as LoraGroups
from .tuner import NoFFNFoundError as NoFFNFoundError
from .tuner import export_lora as export_lora
from .tuner import find_ffn_blocks as find_ffn_blocks

__version__: str

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
    "fetch_run",
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
