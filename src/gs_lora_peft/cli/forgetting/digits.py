"""What the commands work on without a model and data: handwritten digits, and a small Vision Transformer.

The 1,797 real images of 8×8 pixels come with scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from huggingface_hub import cached_assets_path
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from transformers import PreTrainedModel

from ...audit import RetrainRecipe, retrain
from ...io import StrPath
from ...models import small_vit

DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# How the base model is trained, and models that are trained again without some digits to compare with it.
DIGITS_RECIPE = RetrainRecipe(epochs=40, learning_rate=1e-3, batch_size=64, weight_decay=0.05, warmup=30)


def load_digits() -> DatasetDict:
    """Loads scikit-learn's digits as a train and a test split (75 % / 25 %, stratified).

    Returns:
        `datasets.DatasetDict`: `pixel_values` of shape (1, 8, 8), in [-1, 1], and `label` with names.
    """
    digits = sklearn_digits()
    images = (digits.images / 8 - 1).astype(np.float32)[:, None]
    rows = train_test_split(np.arange(len(images)), test_size=0.25, stratify=digits.target, random_state=0)
    features = Features({"pixel_values": Array3D((1, 8, 8), "float32"), "label": ClassLabel(names=DIGIT_NAMES)})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"pixel_values": images[index], "label": digits.target[index]}, features=features
            ).with_format("torch")
            for split, index in zip(("train", "test"), rows, strict=True)
        }
    )


def pretrained_digits_vit(
    dataset: DatasetDict,
    seed: int = 0,
    recipe: RetrainRecipe = DIGITS_RECIPE,
    cache: StrPath | None = None,
    disable_tqdm: bool | None = None,
) -> PreTrainedModel:
    """Returns a ViT of 6 blocks and width 64 that is trained on all ten digits; about 25 s on two cores, once.

    Args:
        dataset (`datasets.DatasetDict`):
            What [`load_digits`] returns.
        seed (`int`, *optional*, defaults to 0):
            Seed of the weights and of the order of samples.
        recipe ([`RetrainRecipe`], *optional*):
            How to train.
        cache (`str` or `os.PathLike`, *optional*, defaults to the assets cache of Hugging Face):
            Folder of trained models.
        disable_tqdm (`bool`, *optional*):
            As in `transformers.TrainingArguments`.

    Returns:
        `transformers.PreTrainedModel`: The model in eval mode.
    """
    model = small_vit(dataset["train"].features["label"].names, image_size=8)
    cache = cache or cached_assets_path("gs_lora_peft", namespace="examples", subfolder="digits-vit")
    return retrain(model, dataset["train"], [], recipe=recipe, seed=seed, cache=cache, disable_tqdm=disable_tqdm)
