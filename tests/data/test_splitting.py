"""One door for labelled rows and annotated boxes."""

import pytest
import transformers
from box_cases import found, make
from errors import refused

from gs_lora_peft.data import DetectionCollator, split_dataset, train_validation_split
from gs_lora_peft.data.boxes.box_splits import split_boxes, train_validation_boxes
from gs_lora_peft.data.collation import default_collator
from gs_lora_peft.data.splits import read_classes

CATEGORIES = [[0, 1], [1], [0, 2], [2, 2], [3], [1, 3], [0], [1, 2]]


@pytest.mark.parametrize("layout", ["struct", "list"])
def test_boxes_go_the_way_of_boxes(layout):
    """`split_dataset` and `train_validation_split` give what those for boxes give, with all settings handed on."""
    data = make(CATEGORIES, layout)
    settings = {"old": ["dog"], "missing": ["cat"], "retain": ["bee"], "shots": 2, "seed": 5}
    mine = split_dataset(data, ["ant"], label_column="objects", **settings)
    theirs = split_boxes(data, ["ant"], objects_column="objects", **settings)
    for part in ("forget", "retain", "old", "missing"):
        assert found(getattr(mine, part)) == found(getattr(theirs, part))
    assert (mine.forget_classes, mine.retain_classes, mine.old_classes, mine.missing_classes) == ([0], [1], [3], [2])
    for mine, theirs in zip(
        train_validation_split(data, "objects", 0.4, 3), train_validation_boxes(data, "objects", 0.4, 3), strict=True
    ):
        assert mine["image_id"] == theirs["image_id"]


def test_classes_of_boxes_and_of_rows():
    """The category of every box, one image behind the other, and the names; of rows their labels."""
    classes, names = read_classes(make(CATEGORIES), "objects")
    assert classes.tolist() == [category for row in CATEGORIES for category in row]
    assert names == ["ant", "bee", "cat", "dog"]
    classes, names = read_classes(make(CATEGORIES).add_column("label", list(range(8))), "label")
    assert (classes.tolist(), names) == (list(range(8)), None)


def test_the_collator_follows_the_data():
    """Boxes are collated by their processor, and refused without one."""
    data = make(CATEGORIES)
    kind = getattr(transformers, "YolosImageProcessorPil", None) or transformers.YolosImageProcessor
    collator = default_collator(kind(), "objects", data)
    assert isinstance(collator, DetectionCollator)
    assert collator.objects_column == "objects"
    with refused("processing_class", "NoneType"):
        default_collator(None, "objects", data)
