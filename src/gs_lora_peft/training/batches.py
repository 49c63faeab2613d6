"""Joint batches for the Trainer, and how many samples are in them."""

from __future__ import annotations

from typing import Any, cast

from transformers.trainer_pt_utils import AcceleratorConfig

from ..data.agreement import AgreeingLabels
from ..data.augmentation import AugmentedPairs, NumberedSampler
from ..data.pairing import PairedCollator, PairedDataset, PairedSampler
from .base import TaskTrainer
from .callbacks import SamplerEpochCallback


class PairedBatches(TaskTrainer):
    """The part of [`ForgettingTrainer`] that reads the training data."""

    _epochs: SamplerEpochCallback

    def get_train_dataloader(self):
        pairs_only = self.data_collator
        self.data_collator = PairedCollator(AgreeingLabels(pairs_only, self.label_column), self.forget_classes)
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
            seed=self.args.drawing_seed,
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
