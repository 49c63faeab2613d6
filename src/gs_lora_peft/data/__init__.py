"""Splits and pairing."""

from .augmentation import rand_augment
from .classes import align_labels
from .pairing import ImageCollator, PairedCollator, PairedDataset, PairedSampler
from .protocol import class_order, continual_protocol
from .splits import ForgettingSplit, split_dataset, train_validation_split

__all__ = [
    "ForgettingSplit",
    "ImageCollator",
    "PairedCollator",
    "PairedDataset",
    "PairedSampler",
    "align_labels",
    "class_order",
    "continual_protocol",
    "rand_augment",
    "split_dataset",
    "train_validation_split",
]
