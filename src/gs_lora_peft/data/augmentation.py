"""Augmented views of images, for prototypes of few samples and for training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import InvalidInputError
from ..images import to_image
from .pairing import PairedDataset, PairedSampler
from .rows import NamedRows, Row, cell_name, no_column, picture_cell

Augment = Callable[[Any], Any]


def rand_augment(num_ops: int = 2, magnitude: int = 9) -> Augment:
    """RandAugment (https://arxiv.org/abs/1909.13719) of torchvision, by default with two operations as in the paper.

    The function maps a uint8 tensor of shape `(channels, height, width)` to such a tensor, and anything else that
    [`to_image`] reads to a PIL image. Grey stays grey. Other modes (transparency, palette, CMYK, one bit) become RGB.

    Args:
        num_ops (`int`, *optional*, defaults to 2):
            Number of operations applied to an image, one after another.
        magnitude (`int`, *optional*, defaults to 9):
            Their strength, from 0 to 30.

    Returns:
        `Callable`: A function from image to image.

    Raises:
        InvalidInputError: If torchvision is not installed. In a call, if the image is a tensor of floats, whose range
            is unknown.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise InvalidInputError(
            "augment",
            "RandAugment",
            "torchvision, which is not installed",
            "Install it (pip install torchvision), or pass a function from image to image as `augment`.",
        ) from error
    return _ReadsImages(v2.RandAugment(num_ops=num_ops, magnitude=magnitude))


class _ReadsImages:
    """Applies a transform of torchvision to whatever [`to_image`] reads."""

    def __init__(self, transform: Augment):
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            raise InvalidInputError(
                "image",
                f"a tensor of {image.dtype}",
                "a PIL image or uint8, because RandAugment misreads normalised values",
                "Keep the images in the dataset and normalise them in the collator, or pass your own function as "
                "`augment`.",
            )
        # Some operations only support grey and RGB.
        is_bytes = isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3
        return self.transform(image if is_bytes else to_image(image, None))


class Augmentation:
    """Makes random views of the images in rows. A view depends only on the seed and its number.

    A resumed run, and data loading in other processes, see the same views.

    Args:
        augment (`Callable`):
            A function from an image, as the column holds it, to an image. It may draw from the generators of torch,
            NumPy and Python.
        column (`str`):
            Column of the images.
        seed (`int`):
            Seed of the views.
    """

    def __init__(self, augment: Augment, column: str, seed: int):
        self.augment = augment
        self.column = column
        self.seed = seed

    def __call__(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """The row with view `number` of its image.

        Raises:
            InvalidInputError: If the row lacks the column, or its image cannot be augmented.
        """
        if self.column not in row:
            fix = "Rename the column of the images, or pass a `data_collator` with its name as `image_column`."
            raise no_column(row, "image_column", self.column, fix)
        with _seeded(np.random.SeedSequence(self.seed, spawn_key=(number,))):
            try:
                view = self.augment(picture_cell(row, self.column))
            except InvalidInputError as error:
                name = cell_name(row, self.column)
                raise type(error)(name, error.value, error.expected, error.fix) from error
        row = row if isinstance(row, Row) else Row(row)
        return row.replaced(self.column, view)


class AugmentedViews(Dataset):
    """Every row of a dataset as it is, followed by its augmented views.

    Args:
        dataset (map-style dataset):
            The rows.
        views (`int`):
            Number of augmented views of each row.
        augmentation ([`Augmentation`]):
            Makes the views.
    """

    def __init__(self, dataset: Any, views: int, augmentation: Augmentation):
        self.dataset = NamedRows(dataset, "the training data")
        self.times = views + 1
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = self.dataset.__getitems__([index // self.times for index in indices])
        return [
            self.augmentation(row, index) if index % self.times else row
            for row, index in zip(rows, indices, strict=True)
        ]


class NumberedSampler(PairedSampler):
    """A [`PairedSampler`] whose pairs end with their number since the start of the training."""

    def __iter__(self) -> Iterator[Any]:
        for position, pair in enumerate(super().__iter__()):
            yield *pair, self.epoch * len(self) + position


class AugmentedPairs(PairedDataset):
    """A [`PairedDataset`] with a new view of both samples each time. [`NumberedSampler`] draws its indices.

    Args:
        retain (map-style dataset):
            D_r, the samples to keep.
        forget (map-style dataset):
            D_f, the samples to forget.
        augmentation ([`Augmentation`]):
            Makes the views.
    """

    def __init__(self, retain: Any, forget: Any, augmentation: Augmentation):
        super().__init__(retain, forget)
        self.augmentation = augmentation

    def __getitem__(self, pair: Any) -> tuple[Any, Any]:
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [
            (self.augmentation(retain, 2 * number), self.augmentation(forget, 2 * number + 1))
            for (retain, forget), (_, _, number) in zip(super().__getitems__(pairs), pairs, strict=True)
        ]


@contextmanager
def _seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seeds the global generators of torch, NumPy and Python for the block, and restores them after it."""
    for_torch, for_numpy, for_python = sequence.generate_state(3).tolist()
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(for_torch)  # torch.manual_seed would seed accelerators, too
            np.random.seed(for_numpy)
            random.seed(for_python)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
