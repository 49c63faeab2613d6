"""A Trainer that forgets by whatever method: arguments, batches, evaluation, checkpoints."""

from .arguments import GSLoraTrainingArguments
from .checks import NoGradientError, NonFiniteLossError, NoStepError
from .method import Method
from .preparing import own_batches
from .trained import Trained, TrainedAdapter, TrainedWeights
from .trainer import ForgettingTrainer

__all__ = [
    "ForgettingTrainer",
    "GSLoraTrainingArguments",
    "Method",
    "NoGradientError",
    "NoStepError",
    "NonFiniteLossError",
    "Trained",
    "TrainedAdapter",
    "TrainedWeights",
    "own_batches",
]
