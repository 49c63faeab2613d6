from .gs_lora import GSLora as GSLora, GSLoraTrainer as GSLoraTrainer
from .registry import METHODS as METHODS, get_method as get_method
from .sparsity import EMACallback as EMACallback, SparsityCallback as SparsityCallback

__all__ = [
    "METHODS",
    "EMACallback",
    "GSLora",
    "GSLoraTrainer",
    "SparsityCallback",
    "get_method",
]
