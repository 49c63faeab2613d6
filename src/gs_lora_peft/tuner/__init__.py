"""PEFT side: the tuner type `GS_LORA`, where its LoRA goes, its groups, and the plain form that is published."""

import lazy_loader

from .registration import GS_LORA, add_peft_type, register

add_peft_type(GS_LORA)  # before `config`, whose classes name the member

from .config import GSLoraConfig
from .model import GSLoraModel

register(GSLoraConfig, GSLoraModel)

# The rest needs a PEFT that is complete; this module may be imported while PEFT is.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
