"""A Vision Transformer that trains on a CPU in seconds, for the demo, the app and tests."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import ViTConfig, ViTForImageClassification


def small_vit(names: Sequence[str], image_size: int) -> ViTForImageClassification:
    """Makes a Vision Transformer of 6 blocks and width 64 for small grey pictures, with new random weights.

    Args:
        names (`Sequence[str]`):
            Names of the classes, in the order of their ids.
        image_size (`int`):
            Pixels a side, a multiple of 4: a picture has 4×4 patches.

    Returns:
        `transformers.ViTForImageClassification`: The model. It takes `pixel_values` of shape
        `(batch, 1, image_size, image_size)`.
    """
    return ViTForImageClassification(
        ViTConfig(
            image_size=image_size,
            patch_size=image_size // 4,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=256,
            initializer_range=0.06,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )
