"""Reads the data: its classes, views and columns, and the joint batches for the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ...data import (
    AgreeingLabels,
    Augmentation,
    AugmentedPairs,
    AugmentedViews,
    NamedRows,
    NumberedSampler,
    PairedCollator,
    PairedDataset,
    PairedSampler,
    check_names,
    is_object_column,
    label_name,
    rand_augment,
    read_classes,
    train_validation_split,
)
from ...errors import InvalidInputError, located
from ..arguments import GSLoraTrainingArguments
from ..method import TaskTrainer
from .streams import sampled


def classes_of(dataset: Any, label_column: str, name: str, model: nn.Module) -> list[int]:
    """Returns the distinct labels of a data set, sorted.

    Args:
        dataset (map-style dataset):
            The data set. Of a `datasets.Dataset` only the label column is read.
        label_column (`str`):
            Column of the labels, or of annotated boxes.
        name (`str`):
            What errors call the set, e.g. `"forget"`.
        model (`torch.nn.Module`):
            The model. Its names of the classes must be those of the data.

    Raises:
        ValueError: If the column is missing, it is empty in every row, a label or the category of a box is not an
            integer of at least 0, or the model gives one of the classes another name.
    """
    if isinstance(dataset, Dataset):
        try:
            labels, names = read_classes(dataset, label_column)
            check_names(names, model, f"{label_column!r}")
        except ValueError as error:
            raise located(error, f"the {name} set") from error
    else:
        labels = _labels_of_rows(dataset, label_column, name)
    column = f"{label_column!r} of the {name} set"
    if not labels.size:
        raise InvalidInputError(
            column,
            [],
            f"at least one object; the column is empty in all {len(dataset)} rows",
            "Give images with annotated objects: others teach nothing and cannot be scored.",
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        bad = next((label for label in labels.flat if not isinstance(label, (int, np.integer)) or label < 0), None)
        raise InvalidInputError(
            column,
            bad.item() if isinstance(bad, np.generic) else bad,
            "an integer of at least 0 for each sample",
            "Give the ids of the model's head. Annotated boxes are read from a datasets.Dataset only.",
        )
    return [int(value) for value in np.unique(labels)]


def _labels_of_rows(dataset: Any, label_column: str, name: str) -> np.ndarray:
    """The labels of a data set without columns, found as the collator finds them."""
    rows = NamedRows(dataset, f"the {name} set")
    labels = []
    for index in range(len(rows)):
        row = rows[index]
        found = label_name(row, label_column) if isinstance(row, Mapping) else None
        try:
            labels.append(row[found or label_column])
        except (KeyError, TypeError, IndexError) as error:
            raise InvalidInputError(
                rows.row_name(index),
                list(row) if isinstance(row, Mapping) else type(row).__name__,
                f"a dictionary with an integer under {label_column!r}",
                "Give the key of the labels as `label_column`.",
            ) from error
    return np.asarray(labels)


def held_out(pairs: PairedDataset, label_column: str, args: GSLoraTrainingArguments) -> tuple[PairedDataset, Dataset]:
    """Holds the `validation_fraction` of every class of both training sets out: the rest, and what is held out.

    Args:
        pairs ([`PairedDataset`]):
            Both training sets.
        label_column (`str`):
            Column of the integer labels.
        args ([`GSLoraTrainingArguments`]):
            The arguments.

    Raises:
        InvalidInputError: If the data set holds annotated boxes: an image may be in both training sets.
    """
    if is_object_column(pairs.retain, label_column):
        raise InvalidInputError(
            "validation_fraction",
            args.validation_fraction,
            "0 with annotated boxes: images cannot be held out of sets that share some",
            f"Take them out before they are split, with train_validation_split(dataset, {label_column!r}), and give "
            "them to GSLoraTrainer as `eval_dataset`. A ContinualForgetter scores after each task only: leave "
            "`eval_strategy` at 'no' there.",
        )
    (retain, kept), (forget, gone) = (
        train_validation_split(dataset, label_column, args.validation_fraction, args.seed)
        for dataset in (pairs.retain, pairs.forget)
    )
    return PairedDataset(retain, forget), concatenate_datasets([kept, gone])


class ColumnFilter:
    """A collator that passes on only some columns of each row.

    The Trainer keeps the columns that the model's forward takes. That drops image columns, and it does not look into
    pairs. This collator filters the rows instead, after the transform of the data set, in the same way for pairs,
    evaluation and prototypes.

    Args:
        collate (`Callable`):
            The collator to call. Its attributes can be read through this one.
        columns (`Collection[str]`):
            The columns to keep, besides those that the collator's attributes name (`image_column`, `label_column`, …).
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
                    "Leave it out.",
                ) from error
            raise

    def __getattr__(self, name: str) -> Any:
        if name == "collate":  # absent while a worker process unpickles this
            raise AttributeError(name)
        return getattr(self.collate, name)

    def _of(self, row: Any) -> Any:
        return {key: value for key, value in row.items() if key in self.columns} if isinstance(row, Mapping) else row


def _attributes(collate: Any) -> dict[str, Any]:
    return dict(vars(collate)) if hasattr(collate, "__dict__") else {}


def chosen_augmentation(
    args: GSLoraTrainingArguments, augment: Callable[[Any], Any] | None, data_collator: Any
) -> Augmentation | None:
    """Returns what makes random views of images; `None` if `args` asks for none.

    Args:
        args ([`GSLoraTrainingArguments`]):
            `augmentation` and `prototype_augmentations` ask for views; `seed` decides them.
        augment (`Callable`, *optional*):
            From an image to a random view of it; by default RandAugment.
        data_collator (`Callable`):
            The collator, whose `image_column` holds the images.

    Raises:
        InvalidInputError: If `augment` is given and not needed, or the data has boxes, which would not move along.
        ValueError: If torchvision is needed and not installed.
    """
    if not args.augmentation and not args.prototype_augmentations:
        if augment is not None:
            raise InvalidInputError(
                "augment",
                augment,
                "None without `augmentation` and `prototype_augmentations`",
                "Set one of them in the arguments, or leave it out.",
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
    """Measures the model before the task, for Drop and H, and prepares the objective.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that runs.
    """

    def __init__(self, trainer: TaskTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        evaluates = args.eval_strategy != "no" or args.eval_on_start or trainer.hp_search_backend is not None
        if evaluates and trainer.eval_dataset is not None and not trainer.accuracy_forget_before:
            trainer.measure_before()
        prepare_objective(trainer)


def prepare_objective(trainer: TaskTrainer) -> None:
    """Prepares the objective with the model before the task and both training sets.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer that is about to train.
    """
    args = trainer.args

    def batches() -> Iterator[dict[str, Any]]:
        sets = sampled(trainer.train_dataset)
        if args.prototype_augmentations and trainer.augmentation:
            sets = [AugmentedViews(dataset, args.prototype_augmentations, trainer.augmentation) for dataset in sets]
        return own_batches(trainer, sets)

    with trainer.trained.before(), trainer.accelerator.autocast():
        trainer.task_objective.prepare(trainer.model, batches, trainer.global_sum)


def own_batches(trainer: TaskTrainer, datasets: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields this process's share of data sets, each row once, in batches on the device.

    Args:
        trainer ([`TaskTrainer`]):
            The trainer, for its collator, device and processes.
        datasets (sequence of map-style datasets):
            The data sets, one after another.
    """
    args = trainer.args
    for dataset in datasets:
        rows = range(args.process_index, len(dataset), args.world_size)
        loader = DataLoader(
            Subset(NamedRows(dataset), rows),
            batch_size=args.per_device_eval_batch_size,
            collate_fn=AgreeingLabels(trainer.data_collator, trainer.label_column),
            num_workers=args.dataloader_num_workers,
            # Its own generator, so that the random numbers of the training stay the same.
            generator=torch.Generator().manual_seed(args.seed),
        )
        for batch in loader:
            yield trainer._prepare_inputs(batch)


def steps_per_epoch(args: TrainingArguments, train_dataloader: DataLoader) -> int:
    """Returns the optimizer steps in one pass over a data loader."""
    return max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)


class SamplerEpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    The data loader does so too, except when several processes resume in the middle of an epoch: the loader that skips
    the finished batches hides the sampler from it.
    """

    sampler: PairedSampler

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        self.sampler.set_epoch(state.global_step // steps_per_epoch(args, train_dataloader))


class PairedBatches(TaskTrainer):
    """The part of [`ForgettingTrainer`] that reads the training data."""

    _sampler_epoch: SamplerEpochCallback

    def get_train_dataloader(self) -> DataLoader:
        pairs_only, persistent = self.data_collator, self.args.dataloader_persistent_workers
        self.data_collator = PairedCollator(AgreeingLabels(pairs_only, self.label_column), self.roles.forget)
        if self.train_dataset.streams and self.args.dataloader_num_workers:
            # Workers that end with an epoch would read a stream from its start again.
            self.args.dataloader_persistent_workers = True
        try:
            return self._get_dataloader(
                dataset=self.train_dataset,
                description="Training",
                batch_size=self._train_batch_size,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator, self.args.dataloader_persistent_workers = pairs_only, persistent

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        kind = NumberedSampler if isinstance(dataset, AugmentedPairs) else PairedSampler
        sampler = kind(
            None if dataset.streams else len(dataset.retain),
            len(dataset.forget),
            global_batch_size=self._global_batch_size(),
            seed=self.args.sampling_seed,
            drop_last=self.args.dataloader_drop_last,
            covers=self.args.epoch_covers,
        )
        self._sampler_epoch.sampler = sampler
        return sampler

    def _global_batch_size(self) -> int:
        """Returns the pairs of one batch, over all processes."""
        split = cast(AcceleratorConfig, self.args.accelerator_config).split_batches
        return self._train_batch_size * (1 if split else self.args.world_size)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Returns the samples of an optimizer step over all processes, of both halves."""
        return 2 * self._global_batch_size() * args.gradient_accumulation_steps

    def num_examples(self, dataloader: DataLoader) -> int:
        """Returns the samples of a data loader; of the training's, those of both halves."""
        number = super().num_examples(dataloader)
        return 2 * number if isinstance(getattr(dataloader, "dataset", None), PairedDataset) else number

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Returns the data set as it is: [`ColumnFilter`] drops columns of rows, after every transform."""
        return dataset

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # With uneven batches, processes would wait for each other for ever. Training batches are whole in every
        # process, and scores leave out the padding of evaluation.
        self.accelerator.dataloader_config.even_batches = True
