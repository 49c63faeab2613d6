"""Arguments, trainer and callbacks."""

from .arguments import GSLoraTrainingArguments
from .callbacks import EMACallback, SparsityCallback
from .checks import NoGradientError, NonFiniteLossError, NoStepError
from .trainer import GSLoraTrainer

__all__ = [
    "EMACallback",
    "GSLoraTrainer",
    "GSLoraTrainingArguments",
    "NoGradientError",
    "NoStepError",
    "NonFiniteLossError",
    "SparsityCallback",
]
