"""The PEFT tuner `GS_LORA`: where its LoRA goes, its groups, and its export as plain LoRA."""

import lazy_loader

from .registration import GS_LORA, add_peft_type, register

add_peft_type(GS_LORA)  # before `config` is imported, which names the member

from .config import GSLoraConfig
from .model import GSLoraModel

register(GSLoraConfig, GSLoraModel)

# The rest needs a complete PEFT, while this module may be imported during the import of PEFT.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
