from .gs_lora import GSLora as GSLora
from .gs_lora import GSLoraTrainer as GSLoraTrainer
from .registry import METHODS as METHODS
from .registry import get_method as get_method
from .sparsity import EMACallback as EMACallback
from .sparsity import SparsityCallback as SparsityCallback

__all__ = [
    "METHODS",
    "EMACallback",
    "GSLora",
    "GSLoraTrainer",
    "SparsityCallback",
    "get_method",
]
