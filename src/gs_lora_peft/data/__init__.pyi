from .alignment import (
    ALIGN as ALIGN,
    align_known_labels as align_known_labels,
    align_labels as align_labels,
    check_names as check_names,
    is_placeholder as is_placeholder,
)
from .augmentation import (
    Augmentation as Augmentation,
    AugmentedPairs as AugmentedPairs,
    AugmentedViews as AugmentedViews,
    NumberedSampler as NumberedSampler,
    rand_augment as rand_augment,
)
from .boxes.annotations import (
    Annotations as Annotations,
    InvalidBoxError as InvalidBoxError,
    prepare_boxes as prepare_boxes,
    read_annotations as read_annotations,
)
from .boxes.coco import read_coco as read_coco
from .boxes.collation import DetectionCollator as DetectionCollator
from .boxes.columns import is_object_column as is_object_column
from .classes import (
    check_dataset as check_dataset,
    label_names as label_names,
    names_of_model as names_of_model,
    resolve_classes as resolve_classes,
)
from .collation import (
    ImageCollator as ImageCollator,
    RowCollator as RowCollator,
    component as component,
    default_collator as default_collator,
)
from .pairing import (
    AgreeingLabels as AgreeingLabels,
    EpochCovers as EpochCovers,
    PairedCollator as PairedCollator,
    PairedDataset as PairedDataset,
    PairedSampler as PairedSampler,
    check_given_labels as check_given_labels,
)
from .pictures import check_pictures as check_pictures
from .row_splits import ForgettingSplit as ForgettingSplit, check_sampling as check_sampling
from .rows import (
    NamedRows as NamedRows,
    cell_name as cell_name,
    label_name as label_name,
    picture_cell as picture_cell,
)
from .splits import (
    EVALUATION_SPLITS as EVALUATION_SPLITS,
    class_order as class_order,
    continual_protocol as continual_protocol,
    evaluation_split as evaluation_split,
    read_classes as read_classes,
    remove_classes as remove_classes,
    split_dataset as split_dataset,
    train_validation_split as train_validation_split,
)
from .streaming import RetainStream as RetainStream, is_stream as is_stream

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
    "RetainStream",
    "RowCollator",
    "align_known_labels",
    "align_labels",
    "cell_name",
    "check_dataset",
    "check_given_labels",
    "check_names",
    "check_pictures",
    "check_sampling",
    "class_order",
    "component",
    "continual_protocol",
    "default_collator",
    "evaluation_split",
    "is_object_column",
    "is_placeholder",
    "is_stream",
    "label_name",
    "label_names",
    "names_of_model",
    "picture_cell",
    "prepare_boxes",
    "rand_augment",
    "read_annotations",
    "read_classes",
    "read_coco",
    "remove_classes",
    "resolve_classes",
    "split_dataset",
    "train_validation_split",
]
