"""Plain fine-tuning of the feed-forward Linears, with the losses of GS-LoRA and without LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..training import LOSS_OPTIONS, Method, Trained, TrainedWeights
from ..tuner import find_ffn_blocks


@dataclass(kw_only=True)
class FFNFinetuning(Method):
    """Trains the feed-forward Linears of every Transformer block directly, and freezes all other weights.

    Layers, batches and losses are those of GS-LoRA, so that a comparison shows the effect of low rank and sparsity.
    The losses leave out classes without data, as with GS-LoRA, but no distillation holds these classes. The model
    changes in place, without an adapter to remove, store or share. Weights need a smaller learning rate than LoRA
    factors.

    Raises:
        NoFFNFoundError: If no feed-forward is found in the model.
    """

    name = "ffn"
    trains = "weights"
    # The earlier model, which they compare with, is gone when weights train.
    reads = frozenset(name for name in LOSS_OPTIONS if not name.startswith(("depth_", "distillation_")))
    # No source: a usual rate for AdamW on weights, where the default is one for LoRA factors.
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3}

    def take(self, model: nn.Module) -> Trained:
        return TrainedWeights(model, (path for paths in find_ffn_blocks(model).values() for path in paths))
