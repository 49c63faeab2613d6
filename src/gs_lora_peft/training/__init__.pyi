from .arguments import GSLoraTrainingArguments as GSLoraTrainingArguments
from .checkpoints import ResumableTrainer as ResumableTrainer
from .checks import check_types as check_types
from .evaluation import ObjectiveEvaluation as ObjectiveEvaluation
from .gradients import (
    NoGradientError as NoGradientError,
    NonFiniteLossError as NonFiniteLossError,
    NoStepError as NoStepError,
)
from .method import Half as Half, Method as Method, half_of as half_of, rows_of as rows_of
from .prefix.states import kept_generators as kept_generators
from .processes.replicated import shard_if_asked as shard_if_asked
from .publishing import repo_to_publish_in as repo_to_publish_in
from .reading import (
    GROUP_OPTIONS as GROUP_OPTIONS,
    LOSS_OPTIONS as LOSS_OPTIONS,
    only_read as only_read,
    unread_options as unread_options,
)
from .recipes import RecipeName as RecipeName, adapter_of_recipe as adapter_of_recipe
from .samples.batches import own_batches as own_batches, steps_per_epoch as steps_per_epoch
from .samples.streams import sampled as sampled
from .trained import Trained as Trained, TrainedAdapter as TrainedAdapter, TrainedWeights as TrainedWeights
from .trainer import ForgettingTrainer as ForgettingTrainer

__all__ = [
    "GROUP_OPTIONS",
    "LOSS_OPTIONS",
    "ForgettingTrainer",
    "GSLoraTrainingArguments",
    "Half",
    "Method",
    "NoGradientError",
    "NoStepError",
    "NonFiniteLossError",
    "ObjectiveEvaluation",
    "RecipeName",
    "ResumableTrainer",
    "Trained",
    "TrainedAdapter",
    "TrainedWeights",
    "adapter_of_recipe",
    "check_types",
    "half_of",
    "kept_generators",
    "only_read",
    "own_batches",
    "repo_to_publish_in",
    "rows_of",
    "sampled",
    "shard_if_asked",
    "steps_per_epoch",
    "unread_options",
]
