"""Labels of a dataset must mean the classes of the model: a shift by one forgets the wrong class."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from errors import refused

from gs_lora_peft.data import align_known_labels, align_labels
from gs_lora_peft.data.alignment import model_label_ids
from gs_lora_peft.data.classes import label_names

LABEL2ID = {"tench, Tinca tinca": 0, "crane": 1, "Church, church building": 2, "hoist, crane": 3}


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["church", "TENCH"], [2, 0]),
        (["crane", "hoist"], [1, 3]),
        (["tench", "tinca tinca"], None),
        (["goldfish"], None),
    ],
)
def test_names_of_a_model_are_found_by_synonym(names, ids):
    """A class is the model's only if exactly one class goes by that name; a whole name wins over a synonym."""
    assert model_label_ids(names, LABEL2ID) == ids


def test_labels_are_aligned_without_reading_images():
    """A subset in another order gets the model's ids, after a selection too; broken images show none was decoded."""
    features = Features({"label": ClassLabel(names=["church", "tench"]), "image": Image()})
    images = [{"bytes": b"no image", "path": None}] * 3
    dataset = Dataset.from_dict({"label": [0, 1, 0], "image": images}, features=features)
    aligned = align_labels(DatasetDict(train=dataset.select([1, 2, 0])), "label", LABEL2ID)["train"]
    assert aligned.data.column("label").to_pylist() == [0, 2, 2]
    assert label_names(aligned) == ["tench", "crane", "church", "hoist, crane"]
    assert aligned.column_names == ["label", "image"]
    assert align_labels(aligned, "label", LABEL2ID) is aligned
    with refused("column 'label'", ["church"]):
        align_labels(dataset, "label", {"tench": 0})


def test_two_names_of_one_class_are_told_apart_from_unknown_ones():
    """The error blames the names that mean the same class, and no other."""
    features = Features({"label": ClassLabel(names=["church", "tench", "tinca tinca"])})
    with refused("column 'label'", "[1, 2], all of the model's class 0"):
        align_labels(Dataset.from_dict({"label": [0, 1, 2]}, features=features), "label", LABEL2ID)


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (ClassLabel(names=["church", "tench"]), [2, 0]),
        (ClassLabel(names=["a", "tench"]), [0, 1]),
        (Value("int64"), [0, 1]),
    ],
)
def test_labels_of_other_classes_stay(feature, labels):
    """Numbered as the model does where it knows all names, and not touched otherwise."""
    features = Features({"label": feature, "row": Value("int64")})
    dataset = Dataset.from_dict({"label": [0, 1], "row": [0, 1]}, features=features)
    assert align_known_labels(dataset, "label", LABEL2ID)["label"][:] == labels
    assert align_known_labels(DatasetDict(test=dataset), "label", LABEL2ID)["test"]["label"][:] == labels
    with refused("label_column", "target"):
        align_known_labels(dataset, "target", LABEL2ID)


def test_names_that_share_a_class_are_told_apart_from_unknown_ones():
    """Both names are known; which ones share a class is what has to be fixed."""
    feature = ClassLabel(names=["Church", "tench", "church building"])
    data = Dataset.from_dict({"label": [0, 1, 2]}, features=Features({"label": feature}))
    label2id = {"tench, Tinca tinca": 0, "church, church building": 497}
    with refused("column 'label'", "[0, 2], all of the model's class 497"):
        align_labels(data, "label", label2id)
