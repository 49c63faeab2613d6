"""Ways to forget: what trains, by which losses, and what happens between the steps."""

from ..training.method import Method
from .gs_lora import GSLora, GSLoraTrainer
from .registry import METHODS, get_method
from .sparsity import EMACallback, SparsityCallback

__all__ = [
    "METHODS",
    "EMACallback",
    "GSLora",
    "GSLoraTrainer",
    "Method",
    "SparsityCallback",
    "get_method",
]
