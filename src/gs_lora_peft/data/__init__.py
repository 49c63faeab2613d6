"""Splits and pairing."""

from .classes import align_labels
from .pairing import ImageCollator, PairedCollator, PairedDataset, PairedSampler
from .splits import ForgettingSplit, split_dataset, train_validation_split

__all__ = [
    "ForgettingSplit",
    "ImageCollator",
    "PairedCollator",
    "PairedDataset",
    "PairedSampler",
    "align_labels",
    "split_dataset",
    "train_validation_split",
]
