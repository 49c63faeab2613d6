"""Arguments, trainer and callbacks."""

from .arguments import GSLoraTrainingArguments
from .callbacks import EMACallback, SparsityCallback
from .checks import NonFiniteLossError
from .trainer import GSLoraTrainer

__all__ = ["EMACallback", "GSLoraTrainer", "GSLoraTrainingArguments", "NonFiniteLossError", "SparsityCallback"]
