"""What the app forgets from: a data set of small pictures, and a Vision Transformer trained on it.

The digits come with scikit-learn. No free data set of faces is small enough to ship, so visitors bring their own
pictures: a zip with one folder for each person or thing.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from sklearn.model_selection import train_test_split
from transformers import ViTForImageClassification

from gs_lora_peft.audit import RetrainRecipe, retrain
from gs_lora_peft.cli import load_digits
from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.images import to_image
from gs_lora_peft.models import small_vit

# Trained in less than a minute on two cores, so that base and retrained models fit into one request each.
RECIPE = RetrainRecipe(epochs=16, learning_rate=2e-3, batch_size=64, weight_decay=0.05, warmup=0.1)

PICTURE_SIZE = 32  # own pictures become grey, of 32×32 pixels: as many patches as a digit has
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".webp")
LEAST_CLASSES, MOST_CLASSES = 3, 40
LEAST_PICTURES, MOST_PICTURES = 8, 1500  # of each class; in all
MOST_BYTES = 10 * 2**20  # of one unpacked picture
MOST_PIXELS = 25_000_000


@dataclass(frozen=True)
class Source:
    """A data set and the model that knows it.

    Args:
        dataset (`datasets.DatasetDict`):
            `train` and `test`, with `pixel_values`, float32 in [-1, 1], shape `(1, size, size)`, and `label`.
        model (`transformers.ViTForImageClassification`):
            The base model, trained on all classes.
        recipe ([`RetrainRecipe`]):
            How it was trained, and how models are trained that never see some classes.
    """

    dataset: DatasetDict
    model: ViTForImageClassification
    recipe: RetrainRecipe

    @property
    def names(self) -> list[str]:
        """The names of the classes, by id."""
        return self.dataset["train"].features["label"].names

    def pictures(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of a split, float32, shape `(n, 1, size, size)`, and the labels, shape `(n,)`."""
        part = self.dataset[name].with_format("numpy")
        return np.asarray(part["pixel_values"]), np.asarray(part["label"])

    @torch.no_grad()
    def accuracy(self) -> float:
        """Returns the share of test pictures that the base model gets right."""
        pixels, labels = self.pictures("test")
        answers = self.model(pixel_values=torch.from_numpy(pixels)).logits.argmax(1)
        return float((answers.numpy() == labels).mean())


def digits(cache: Path, recipe: RetrainRecipe = RECIPE) -> Source:
    """Loads scikit-learn's 1,797 handwritten digits of 8×8 pixels, and trains the base model unless the cache has it.

    Args:
        cache (`Path`):
            Folder of trained models.
        recipe ([`RetrainRecipe`], *optional*):
            How to train.
    """
    return trained(load_digits(), cache, recipe)


def own_pictures(path: str | Path) -> DatasetDict:
    """Reads a zip with one folder of pictures for each class. Nothing is unpacked to disk.

    The name of a class is that of the folder around its pictures.

    Args:
        path (`str` or `Path`):
            The zip.

    Returns:
        `datasets.DatasetDict`: As [`Source`] has it.

    Raises:
        InvalidInputError: If it is not a zip, a picture cannot be read, or there are too few or too many classes or
            pictures. The error names no class.
    """
    images, folders = _read_zip(path)
    names = sorted(set(folders))
    labels = np.array([names.index(folder) for folder in folders])
    if not LEAST_CLASSES <= len(names) <= MOST_CLASSES:
        expected = f"{LEAST_CLASSES} to {MOST_CLASSES} folders with pictures"
        raise InvalidInputError("zip", f"{len(names)} folders", expected, "Make one folder for each class.")
    fewest = int(np.bincount(labels).min())
    if fewest < LEAST_PICTURES:
        expected = f"at least {LEAST_PICTURES} pictures in every folder"
        raise InvalidInputError("zip", f"a folder with {fewest} pictures", expected, "Add some, or leave it out.")
    return split(images, labels, names)


def _read_zip(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Returns pixels, shape `(n, 1, size, size)`, and the folder of each picture."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception:  # a damaged list of files has many errors
        raise InvalidInputError("zip", "another file", "a zip of folders with pictures", "Choose another.") from None
    with archive:
        members = [member for member in archive.infolist() if _is_picture(member)]
        if len(members) > MOST_PICTURES:
            expected = f"at most {MOST_PICTURES} pictures in all"
            raise InvalidInputError("zip", f"{len(members)} pictures", expected, "Leave some out.")
        images = [_pixels(archive, member, number) for number, member in enumerate(members, start=1)]
    shape = (0, 1, PICTURE_SIZE, PICTURE_SIZE)
    folders = [PurePosixPath(member.filename).parent.name for member in members]
    return np.stack(images) if images else np.empty(shape, np.float32), folders


def _is_picture(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and bool(path.parent.name) and not hidden


def _pixels(archive: zipfile.ZipFile, member: zipfile.ZipInfo, number: int) -> np.ndarray:
    expected = f"pictures of at most {MOST_BYTES // 2**20} MiB and {MOST_PIXELS // 10**6} million pixels"
    try:
        if member.file_size > MOST_BYTES:
            raise ValueError
        with archive.open(member) as file:
            content = file.read(MOST_BYTES)
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError
        small = to_image(content, "L").resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    except Exception:  # each of Pillow's formats and each damage has errors of its own
        # The name of the file would name its class.
        fix = f"It is number {number} of the pictures in the zip: leave it out."
        raise InvalidInputError("zip", "a picture that cannot be read", expected, fix) from None
    return (np.asarray(small, dtype=np.float32) / 127.5 - 1)[None]


def split(images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> DatasetDict:
    """Splits pictures into 75 % to train on and 25 % to test on, the same share of each class.

    Args:
        images (`np.ndarray`):
            Float32 in [-1, 1], shape `(n, 1, size, size)`.
        labels (`np.ndarray`):
            Class ids, shape `(n,)`.
        names (`Sequence[str]`):
            One for each class.
    """
    rows = train_test_split(np.arange(len(images)), test_size=0.25, stratify=labels, random_state=0)
    features = Features({"pixel_values": Array3D(images.shape[1:], "float32"), "label": ClassLabel(names=list(names))})
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"pixel_values": images[index], "label": labels[index]}, features=features
            ).with_format("torch")
            for name, index in zip(("train", "test"), rows, strict=True)
        }
    )


def trained(dataset: DatasetDict, cache: Path, recipe: RetrainRecipe, data_collator: Callable | None = None) -> Source:
    """Trains a Vision Transformer of 6 blocks and width 64 on a data set, unless the cache has it.

    Args:
        dataset (`datasets.DatasetDict`):
            As [`Source`] has it.
        cache (`Path`):
            Folder of trained models.
        recipe ([`RetrainRecipe`]):
            How to train.
        data_collator (`Callable`, *optional*):
            As in [`retrain`].
    """
    features = dataset["train"].features
    model = small_vit(features["label"].names, features["pixel_values"].shape[-1])
    options = {"recipe": recipe, "cache": cache, "data_collator": data_collator}
    return Source(dataset, retrain(model, dataset["train"], [], seed=0, **options), recipe)
