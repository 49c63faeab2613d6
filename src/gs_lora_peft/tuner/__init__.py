"""PEFT side: the tuner type `GS_LORA`, where its LoRA goes, its groups, and the plain form that is published."""

from .registration import GS_LORA, add_peft_type, register

add_peft_type(GS_LORA)  # before `config`, whose classes name the member

from .blocks import NoFFNFoundError, find_attention_blocks, find_blocks_of, find_ffn_blocks
from .config import GSLoraConfig
from .export import export_lora
from .groups import LoraGroups, trainable_adapters
from .model import GSLoraModel

register(GSLoraConfig, GSLoraModel)

__all__ = [
    "GSLoraConfig",
    "GSLoraModel",
    "LoraGroups",
    "NoFFNFoundError",
    "export_lora",
    "find_attention_blocks",
    "find_blocks_of",
    "find_ffn_blocks",
    "trainable_adapters",
]
