"""What an objective gets to see before the first step: the model as it was before the task, and the training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback

from ..data.agreement import AgreeingLabels
from ..data.augmentation import Augmentation, AugmentedViews, rand_augment
from ..data.rows import NamedRows
from ..errors import InvalidInputError
from .arguments import GSLoraTrainingArguments
from .base import TaskTrainer


def chosen_augmentation(
    args: GSLoraTrainingArguments, augment: Callable[[Any], Any] | None, data_collator: Any
) -> Augmentation | None:
    """What makes views of images, where `args` asks for any.

    Raises:
        InvalidInputError: if `augment` is given for nothing, or if boxes would have to move with the images.
        ValueError: if torchvision is needed and not installed.
    """
    if not args.augmentation and not args.prototype_augmentations:
        if augment is not None:
            raise InvalidInputError(
                "augment",
                augment,
                "None where nothing is to be augmented",
                "Set `augmentation` or `prototype_augmentations` in the arguments, or leave it out.",
            )
        return None
    if hasattr(data_collator, "objects_column"):
        raise InvalidInputError(
            "augmentation",
            args.augmentation,
            f"False with annotated boxes: those in {data_collator.objects_column!r} would stay where they were",
            "Leave it out, and give the data set a transform that moves both: dataset.with_transform(...).",
        )
    column = getattr(data_collator, "image_column", "pixel_values")
    return Augmentation(augment if augment is not None else rand_augment(), column, args.seed)


class PreparationCallback(TrainerCallback):
    """
    What has to be known of the model before the task: how well it knows what is to be forgotten, for Drop and H, and
    what the objective looks at.

    Args:
        trainer ([`TaskTrainer`]): the trainer that runs.
    """

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        evaluates = args.eval_strategy != "no" or args.eval_on_start or trainer.hp_search_backend is not None
        if evaluates and trainer.eval_dataset is not None and not trainer.accuracy_forget_before:
            trainer.measure_before()
        prepare_objective(trainer)


def prepare_objective(trainer: TaskTrainer) -> None:
    """Shows the objective the model as it was before the task, and both training sets.

    Args:
        trainer ([`TaskTrainer`]): the trainer that is about to train.
    """
    args = trainer.args
    sets: list[Any] = [trainer.train_dataset.retain, trainer.train_dataset.forget]
    if args.prototype_augmentations and trainer.augmentation:
        sets = [AugmentedViews(dataset, args.prototype_augmentations, trainer.augmentation) for dataset in sets]

    with trainer.trained.before(), trainer.accelerator.autocast():
        trainer.task_objective.prepare(trainer.model, lambda: own_batches(trainer, sets), trainer.global_sum)


def own_batches(trainer: TaskTrainer, datasets: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """
    This process's share of data sets, each row once, in batches on the device.

    Args:
        trainer ([`TaskTrainer`]): gives the collator, the device and the number of processes.
        datasets (sequence of map-style datasets): what to go through.
    """
    args = trainer.args
    for dataset in datasets:
        rows = range(args.process_index, len(dataset), args.world_size)
        loader = DataLoader(
            Subset(NamedRows(dataset), rows),
            batch_size=args.per_device_eval_batch_size,
            collate_fn=AgreeingLabels(trainer.data_collator, trainer.label_column),
            num_workers=args.dataloader_num_workers,
            # Of its own, so that it draws nothing from the one that training goes on with.
            generator=torch.Generator().manual_seed(args.seed),
        )
        for batch in loader:
            yield trainer._prepare_inputs(batch)
