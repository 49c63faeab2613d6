from .blocks import (
    NoFFNFoundError as NoFFNFoundError,
    find_attention_blocks as find_attention_blocks,
    find_blocks_of as find_blocks_of,
    find_ffn_blocks as find_ffn_blocks,
)
from .config import (
    HEAD_TRAINING_TASKS as HEAD_TRAINING_TASKS,
    MAX_SCALING as MAX_SCALING,
    GSLoraConfig as GSLoraConfig,
    check_plain_lora as check_plain_lora,
    mapping_problem as mapping_problem,
)
from .export import export_lora as export_lora
from .fused import fused_lora as fused_lora
from .groups import LoraGroups as LoraGroups, trainable_adapters as trainable_adapters
from .model import GSLoraModel as GSLoraModel
from .targets import compiled_pattern as compiled_pattern, is_quick as is_quick, names_modules as names_modules

__all__ = [
    "HEAD_TRAINING_TASKS",
    "MAX_SCALING",
    "GSLoraConfig",
    "GSLoraModel",
    "LoraGroups",
    "NoFFNFoundError",
    "check_plain_lora",
    "compiled_pattern",
    "export_lora",
    "find_attention_blocks",
    "find_blocks_of",
    "find_ffn_blocks",
    "fused_lora",
    "is_quick",
    "mapping_problem",
    "names_modules",
    "trainable_adapters",
]
