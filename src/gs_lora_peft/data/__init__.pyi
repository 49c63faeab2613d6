from .alignment import ALIGN as ALIGN
from .alignment import align_known_labels as align_known_labels
from .alignment import align_labels as align_labels
from .alignment import check_names as check_names
from .alignment import is_placeholder as is_placeholder
from .augmentation import Augmentation as Augmentation
from .augmentation import AugmentedPairs as AugmentedPairs
from .augmentation import AugmentedViews as AugmentedViews
from .augmentation import NumberedSampler as NumberedSampler
from .augmentation import rand_augment as rand_augment
from .boxes.annotations import Annotations as Annotations
from .boxes.annotations import InvalidBoxError as InvalidBoxError
from .boxes.annotations import prepare_boxes as prepare_boxes
from .boxes.annotations import read_annotations as read_annotations
from .boxes.coco import read_coco as read_coco
from .boxes.collation import DetectionCollator as DetectionCollator
from .boxes.columns import is_object_column as is_object_column
from .classes import check_dataset as check_dataset
from .classes import label_names as label_names
from .classes import names_of_model as names_of_model
from .classes import resolve_classes as resolve_classes
from .collation import ImageCollator as ImageCollator
from .collation import RowCollator as RowCollator
from .collation import component as component
from .collation import default_collator as default_collator
from .collation import label_name as label_name
from .pairing import AgreeingLabels as AgreeingLabels
from .pairing import EpochCovers as EpochCovers
from .pairing import PairedCollator as PairedCollator
from .pairing import PairedDataset as PairedDataset
from .pairing import PairedSampler as PairedSampler
from .pairing import check_given_labels as check_given_labels
from .row_splits import ForgettingSplit as ForgettingSplit
from .row_splits import check_sampling as check_sampling
from .rows import NamedRows as NamedRows
from .rows import picture_cell as picture_cell
from .rows import where as where
from .splits import EVALUATION_SPLITS as EVALUATION_SPLITS
from .splits import class_order as class_order
from .splits import continual_protocol as continual_protocol
from .splits import evaluation_split as evaluation_split
from .splits import read_classes as read_classes
from .splits import split_dataset as split_dataset
from .splits import train_validation_split as train_validation_split

__all__ = [
    "ALIGN",
    "EVALUATION_SPLITS",
    "AgreeingLabels",
    "Annotations",
    "Augmentation",
    "AugmentedPairs",
    "AugmentedViews",
    "DetectionCollator",
    "EpochCovers",
    "ForgettingSplit",
    "ImageCollator",
    "InvalidBoxError",
    "NamedRows",
    "NumberedSampler",
    "PairedCollator",
    "PairedDataset",
    "PairedSampler",
    "RowCollator",
    "align_known_labels",
    "align_labels",
    "check_dataset",
    "check_given_labels",
    "check_names",
    "check_sampling",
    "class_order",
    "component",
    "continual_protocol",
    "default_collator",
    "evaluation_split",
    "is_object_column",
    "is_placeholder",
    "label_name",
    "label_names",
    "names_of_model",
    "picture_cell",
    "prepare_boxes",
    "rand_augment",
    "read_annotations",
    "read_classes",
    "read_coco",
    "resolve_classes",
    "split_dataset",
    "train_validation_split",
    "where",
]
