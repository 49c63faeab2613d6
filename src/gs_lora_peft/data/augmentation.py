"""Augmented views of images: for prototypes of few samples, and for training."""

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
from .rows import NamedRows, Row, no_column, picture_cell, where

Augment = Callable[[Any], Any]


def rand_augment(num_ops: int = 2, magnitude: int = 9) -> Augment:
    """
    RandAugment (https://arxiv.org/abs/1909.13719) of torchvision; by default two operations an image, as in the paper.

    Args:
        num_ops (`int`, *optional*, defaults to 2):
            Operations applied to an image, one after another.
        magnitude (`int`, *optional*, defaults to 9):
            Their strength, from 0 to 30.

    Returns:
        `Callable`: Takes a uint8 tensor of shape `(channels, height, width)` and gives one, or anything else that.
        [`to_image`] knows and gives a PIL image: Grey stays grey, everything else (with transparency or a palette, in.
        CMYK, of one bit) becomes RGB.

    Raises:
        InvalidInputError: If torchvision is not installed; when called, for a tensor of floats, whose range is not
            known.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise InvalidInputError(
            "augment",
            "RandAugment",
            "torchvision, which is not installed",
            "Install it (pip install torchvision), or give a function from image to image as `augment`.",
        ) from error
    return _OfImages(v2.RandAugment(num_ops=num_ops, magnitude=magnitude))


class _OfImages:
    def __init__(self, transform: Augment):
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            raise InvalidInputError(
                "image",
                f"a tensor of {image.dtype}",
                "a PIL image or uint8, because RandAugment takes normalised values for brightness",
                "Keep the images in the data set and let the collator normalise them, or give a function of your own "
                "as `augment`.",
            )
        # Not all operations know other modes than grey and RGB.
        bytes_already = isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3
        return self.transform(image if bytes_already else to_image(image, None))


class Augmentation:
    """
    Makes random views of the images in rows; which view is decided by a number, whatever was drawn before.

    So a run that is resumed, or loads its data in other processes, sees the same views.

    Args:
        augment (`Callable`):
            From an image, as the column holds it, to an image. It may draw from the generators of torch, NumPy and
            Python.
        column (`str`):
            Column of the images.
        seed (`int`):
            Decides the views.
    """

    def __init__(self, augment: Augment, column: str, seed: int):
        self.augment = augment
        self.column = column
        self.seed = seed

    def __call__(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """The row with view `number` of its image.

        Raises:
            InvalidInputError: If the row has no such column, or the cell cannot be augmented.
        """
        if self.column not in row:
            fix = "Rename the column of the images, or give a `data_collator` whose `image_column` names it."
            raise no_column(row, "image_column", self.column, fix)
        with _seeded(np.random.SeedSequence(self.seed, spawn_key=(number,))):
            try:
                view = self.augment(picture_cell(row, self.column))
            except InvalidInputError as error:
                name = where(row, self.column)
                raise InvalidInputError(name, error.value, error.expected, error.fix) from error
        row = row if isinstance(row, Row) else Row(row)
        return row.replaced(self.column, view)


class AugmentedViews(Dataset):
    """
    Every row of a data set as it is, followed by augmented views of it.

    Args:
        dataset (map-style dataset):
            The rows.
        views (`int`):
            Augmented views of each row.
        augmentation ([`Augmentation`]):
            What makes them.
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
    """A [`PairedSampler`] that adds to every pair how many came before it since the training began."""

    def __iter__(self) -> Iterator[Any]:
        for position, pair in enumerate(super().__iter__()):
            yield *pair, self.epoch * len(self) + position


class AugmentedPairs(PairedDataset):
    """
    A [`PairedDataset`] that gives a new view of both samples each time; addressed by what [`NumberedSampler`] gives.

    Args:
        retain (map-style dataset):
            As for [`PairedDataset`].
        forget (map-style dataset):
            As for [`PairedDataset`].
        augmentation ([`Augmentation`]):
            What makes the views.
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
            torch.manual_seed(for_torch)
            np.random.seed(for_numpy)
            random.seed(for_python)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
