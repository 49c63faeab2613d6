"""Splits and pairing."""

from .alignment import align_known_labels, align_labels
from .augmentation import rand_augment
from .box_collation import DetectionCollator
from .boxes import InvalidBoxError, prepare_boxes
from .coco import read_coco
from .collation import ImageCollator, RowCollator, default_collator
from .evaluation import evaluation_split
from .pairing import PairedCollator, PairedDataset, PairedSampler
from .protocol import class_order, continual_protocol
from .splits import ForgettingSplit
from .splitting import split_dataset, train_validation_split

__all__ = [
    "DetectionCollator",
    "ForgettingSplit",
    "ImageCollator",
    "InvalidBoxError",
    "PairedCollator",
    "PairedDataset",
    "PairedSampler",
    "RowCollator",
    "align_known_labels",
    "align_labels",
    "class_order",
    "continual_protocol",
    "default_collator",
    "evaluation_split",
    "prepare_boxes",
    "rand_augment",
    "read_coco",
    "split_dataset",
    "train_validation_split",
]
