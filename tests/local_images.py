"""A model and images in folders, as a user has them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

CLASSES = ["church", "school bus", "tench"]


def local_model_and_images(root: Path) -> dict[str, str]:
    """An image folder of three colours, and a tiny ViT with its processor, as `save_pretrained` writes them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for channel, name in enumerate(CLASSES):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 60, (12, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    torch.manual_seed(0)
    # The model numbers the classes in another order than the folder does.
    names = CLASSES[::-1]
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )
    model.save_pretrained(root / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "model")
    return {"model": str(root / "model"), "images": str(root / "images")}
