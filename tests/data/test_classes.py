"""A request must end at the class that was meant, or be refused: forgetting the wrong class cannot be undone."""

import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from errors import refused

from gs_lora_peft.data.classes import UnknownClassError, label_names, resolve_classes

NAMES = ["tench", "golf ball", "church", "cassette player"]


@pytest.mark.parametrize(
    ("requested", "ids"),
    [
        (["church", "tench"], [2, 0]),
        ([3, 0], [3, 0]),
        (["golf ball", 0], [1, 0]),
        (("3",), [3]),
        (np.array([2, 1]), [2, 1]),
        (np.array(["tench"]), [0]),
        (torch.tensor([1]), [1]),
        (range(2), [0, 1]),
        ((n for n in ["tench"]), [0]),
    ],
)
def test_names_and_ids_in_the_order_asked_for(requested, ids):
    resolved = resolve_classes(requested, names=NAMES, num_classes=4)
    assert resolved == ids
    assert all(type(i) is int for i in resolved), "ids go to JSON and must be plain ints"


def test_a_digit_string_is_a_name_before_it_is_an_id():
    assert resolve_classes(["2"], names=["2", "1", "0"]) == [0]
    assert resolve_classes(["2"], names=None) == [2]


def test_a_digit_string_is_no_id_where_names_are_numbers():
    """Of folders called 1, 10 and 3, "2" is none; class 2 is called "3", and may be meant by its id alone."""
    with refused("classes", ["2"], UnknownClassError):
        resolve_classes(["2"], names=["1", "10", "3"])
    assert resolve_classes([2, "10"], names=["1", "10", "3"]) == [2, 1]


def test_a_padded_number_is_not_taken_for_an_id():
    with refused("classes", ["03"], UnknownClassError):
        resolve_classes(["03"], names=NAMES)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("Tench", "tench"),
        ("tensch", "tench"),
        ("CASSETTE PLAYER", "cassette player"),
        ("casette-player", "cassette player"),
        ("golf", "golf ball"),
    ],
)
def test_an_unknown_name_offers_the_nearest(wrong, nearest):
    with refused("classes", [wrong], UnknownClassError) as error:
        resolve_classes([wrong], names=NAMES)
    assert error.value.nearest[wrong][0] == nearest
    assert [name for name in (wrong, nearest) if name in str(error.value)] == []  # messages get into logs
    assert "classes[0]" in error.value.fix


def test_all_unknown_classes_are_told_at_once():
    with refused("classes", ["xyzzy", 4, -1], UnknownClassError) as error:
        resolve_classes(["tench", "xyzzy", 4, -1], names=NAMES)
    assert "0 to 3" in error.value.expected
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), again.value, str(again)) == (UnknownClassError, error.value.value, str(error.value))
    assert again.nearest == error.value.nearest


def test_names_asked_of_labels_without_names():
    with refused("classes", ["tench"], UnknownClassError):
        resolve_classes(["tench"], names=None)


@pytest.mark.parametrize(("num_classes", "accepted"), [(None, True), (6, True), (5, False)])
def test_the_range_of_ids_without_names(num_classes, accepted):
    if accepted:
        assert resolve_classes([5], names=None, num_classes=num_classes) == [5]
    else:
        with refused("classes", [5], UnknownClassError) as error:
            resolve_classes([5], names=None, num_classes=num_classes)
        assert "0 to 4" in error.value.expected


@pytest.mark.parametrize(
    "item", [True, False, np.True_, torch.tensor(True), 1.0, np.float32(1), None, ["tench"], b"a"]
)
def test_neither_a_name_nor_an_id(item):
    with refused("classes[1]", item):
        resolve_classes(["tench", item], names=NAMES)


@pytest.mark.parametrize("requested", ["tench", 3, None, {"tench"}, {"tench": 0}])
def test_what_is_no_list_is_refused(requested):
    """A bare string would be read letter by letter, a set in another order in every process."""
    with refused("classes", requested):
        resolve_classes(requested, names=NAMES)


@pytest.mark.parametrize("requested", [["tench", "tench"], ["tench", 0], [0, "0"]])
def test_a_class_asked_for_twice(requested):
    with refused("classes", requested):
        resolve_classes(requested, names=NAMES)


def test_an_empty_request():
    with refused("forget", []):
        resolve_classes([], names=NAMES, name="forget")


def test_one_name_for_two_classes_needs_the_id():
    """ImageNet has two cranes, a bird and a machine."""
    names = ["crane", "tench", "crane"]
    with refused("classes[1]", "crane") as error:
        resolve_classes(["tench", "crane"], names=names)
    assert "[0, 2]" in error.value.expected
    assert resolve_classes([2, "tench"], names=names) == [2, 1]


def test_the_label_space_must_agree_with_itself():
    with refused("num_classes", 3):
        resolve_classes([0], names=NAMES, num_classes=3)
    with refused("names"):
        resolve_classes([0], names={0: "ant", 2: "bee"})


@pytest.mark.parametrize("key", [int, str])
def test_names_may_be_a_models(key):
    """`id2label` and `label2id`, with ids as numbers or as text, say what a list of names says."""
    for names in (
        {key(number): name for number, name in enumerate(NAMES)},
        {name: key(number) for number, name in enumerate(NAMES)},
    ):
        assert resolve_classes([NAMES[2], "1", 0], names=names) == [2, 1, 0]


def test_label_names():
    features = Features({"label": ClassLabel(names=NAMES), "fine": Value("int32"), "coarse": ClassLabel(names=["a"])})
    dataset = Dataset.from_dict({"label": [0], "fine": [3], "coarse": [0]}, features=features)
    assert label_names(dataset) == NAMES
    assert label_names(dataset.to_iterable_dataset(), "label") == NAMES
    assert label_names(dataset, "fine") is None
    with refused("label_column", "target") as error:
        label_names(dataset, "target")
    assert "'fine'" in error.value.expected
    assert "['label', 'coarse']" in error.value.expected
    with refused("label_column", "label") as error:
        label_names(dataset.remove_columns("label"))
    assert "label_column='coarse'" in error.value.fix
    with refused("dataset", "DatasetDict"):
        label_names(DatasetDict(train=dataset))
