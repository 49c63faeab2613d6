"""Plain fine-tuning of the feed-forward Linears, with the losses of GS-LoRA and without LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..training import Method, Trained, TrainedWeights
from ..tuner import find_ffn_blocks


@dataclass(kw_only=True)
class FFNFinetuning(Method):
    """
    Trains the feed-forward Linears of every Transformer block themselves; all other weights are frozen.

    The same layers, batches and losses as with GS-LoRA, so that a comparison shows what low rank and sparsity are
    worth. Classes without data take no part in the losses here either, but nothing holds them. The model changes in
    place: there is no adapter to take off, store or share. The options of sparsity have no effect. Weights themselves
    want a smaller learning rate than LoRA factors do.

    Raises:
        NoFFNFoundError: If the model has no feed-forward that can be found.
    """

    name = "ffn"
    trains = "weights"

    def take(self, model: nn.Module) -> Trained:
        return TrainedWeights(model, (path for paths in find_ffn_blocks(model).values() for path in paths))
