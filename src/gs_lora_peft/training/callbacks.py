"""The order of the data from epoch to epoch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ..data.pairing import PairedSampler


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
