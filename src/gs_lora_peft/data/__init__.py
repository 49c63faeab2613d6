"""Splits and pairing."""

from .pairing import ImageCollator, PairedCollator, PairedDataset, PairedSampler
from .splits import ForgettingSplit, split_dataset, train_validation_split

__all__ = [
    "ForgettingSplit",
    "ImageCollator",
    "PairedCollator",
    "PairedDataset",
    "PairedSampler",
    "split_dataset",
    "train_validation_split",
]
