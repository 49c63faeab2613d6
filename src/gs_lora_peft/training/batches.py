"""Joint batches for the Trainer, how many samples are in them, and which columns they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback
from transformers.trainer_pt_utils import AcceleratorConfig

from ..data import (
    AgreeingLabels,
    Augmentation,
    AugmentedPairs,
    AugmentedViews,
    NamedRows,
    NumberedSampler,
    PairedCollator,
    PairedDataset,
    PairedSampler,
    rand_augment,
)
from ..errors import InvalidInputError
from .arguments import GSLoraTrainingArguments
from .method import TaskTrainer


class SamplerEpochCallback(TrainerCallback):
    """
    Tells the sampler its epoch.

    The dataloader does so too, except when several processes resume in the middle of an epoch: what skips the batches
    that are done hides the sampler from it.
    """

    sampler: PairedSampler

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.sampler.set_epoch(state.global_step // steps_per_epoch(args, train_dataloader))


def steps_per_epoch(args: Any, train_dataloader: Any) -> int:
    """Optimizer steps in one pass over a data loader."""
    return max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)


class ColumnFilter:
    """
    A collator that sees of each row only some columns.

    The Trainer drops columns from a data set by what the model's forward takes, which an image column is not, and does
    not look into pairs. Rows are filtered here instead, after whatever transform the data set has, and in the same way
    for pairs, evaluation and prototypes.

    Args:
        collate (`Callable`):
            The collator; its attributes can be read through this one.
        columns (`Collection[str]`):
            The columns to leave in, besides those that the collator says it reads (its attributes `image_column`,
            `label_column`, …).
    """

    def __init__(self, collate: Callable[[list[Any]], Any], columns: Collection[str]):
        self.collate = collate
        own = {value for name, value in _attributes(collate).items() if name.endswith("_column")}
        self.columns = frozenset(columns) | {value for value in own if isinstance(value, str)}

    def __call__(self, rows: Sequence[Any]) -> Any:
        kept = [self._of(row) for row in rows]
        try:
            return self.collate(kept)
        except KeyError as error:
            column = error.args[0] if error.args else None
            if isinstance(rows[0], Mapping) and column in rows[0] and column not in kept[0]:
                raise InvalidInputError(
                    "remove_unused_columns",
                    True,
                    f"False, because the collator reads the column {column!r}, which the model's forward does not "
                    "take",
                    "Leave it out of the arguments.",
                ) from error
            raise

    def __getattr__(self, name: str) -> Any:
        if name == "collate":  # not there yet, while a worker process unpickles this
            raise AttributeError(name)
        return getattr(self.collate, name)

    def _of(self, row: Any) -> Any:
        return {key: value for key, value in row.items() if key in self.columns} if isinstance(row, Mapping) else row


def _attributes(collate: Any) -> dict[str, Any]:
    return dict(vars(collate)) if hasattr(collate, "__dict__") else {}


def chosen_augmentation(
    args: GSLoraTrainingArguments, augment: Callable[[Any], Any] | None, data_collator: Any
) -> Augmentation | None:
    """What makes views of images, where `args` asks for any.

    Raises:
        InvalidInputError: If `augment` is given for nothing, or if boxes would have to move with the images.
        ValueError: If torchvision is needed and not installed.
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
        trainer ([`TaskTrainer`]):
            The trainer that runs.
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
        trainer ([`TaskTrainer`]):
            The trainer that is about to train.
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
        trainer ([`TaskTrainer`]):
            Gives the collator, the device and the number of processes.
        datasets (sequence of map-style datasets):
            What to go through.
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


class PairedBatches(TaskTrainer):
    """The part of [`ForgettingTrainer`] that reads the training data."""

    _epochs: SamplerEpochCallback

    def get_train_dataloader(self):
        pairs_only = self.data_collator
        self.data_collator = PairedCollator(AgreeingLabels(pairs_only, self.label_column), self.roles.forget)
        try:
            return self._get_dataloader(
                dataset=self.train_dataset,
                description="Training",
                batch_size=self._train_batch_size,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator = pairs_only

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        kind = NumberedSampler if isinstance(dataset, AugmentedPairs) else PairedSampler
        sampler = kind(
            len(dataset.retain),
            len(dataset.forget),
            global_batch_size=self._global_batch_size(),
            seed=self.args.sampling_seed,
            drop_last=self.args.dataloader_drop_last,
            covers=self.args.epoch_covers,
        )
        self._epochs.sampler = sampler
        return sampler

    def _global_batch_size(self) -> int:
        """Pairs of one batch over all processes."""
        split = cast(AcceleratorConfig, self.args.accelerator_config).split_batches
        return self._train_batch_size * (1 if split else self.args.world_size)

    def get_total_train_batch_size(self, args: Any) -> int:
        """Samples of an optimizer step over all processes: as many to forget as to keep."""
        return 2 * self._global_batch_size() * args.gradient_accumulation_steps

    def num_examples(self, dataloader: Any) -> int:
        """Samples that a data loader gives; of the training's, those to keep and those to forget."""
        number = super().num_examples(dataloader)
        return 2 * number if isinstance(getattr(dataloader, "dataset", None), PairedDataset) else number

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Leaves data sets as they are: rows lose their columns in [`ColumnFilter`], behind every transform."""
        return dataset

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Training batches are whole in every process, and scores leave out what fills up the last ones of evaluation;
        # with uneven batches, processes would wait for each other for ever.
        self.accelerator.dataloader_config.even_batches = True
