"""Names and ids of a model mean the same whichever way a configuration writes them."""

import pytest
from datasets import ClassLabel, Dataset, Features
from errors import refused
from hypothesis import given, settings, strategies as st
from transformers import ViTConfig

from gs_lora_peft.data import align_known_labels, align_labels, prepare_boxes
from gs_lora_peft.data.alignment import check_names
from gs_lora_peft.data.classes import ids_by_name, names_by_id, names_of_model
from gs_lora_peft.errors import InvalidInputError

WORDS = st.text(st.characters(whitelist_categories=["L"]), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(names=st.lists(WORDS, min_size=1, max_size=6, unique=True), as_text=st.booleans())
def test_either_direction_with_either_kind_of_id(names, as_text):
    """`label2id` and `id2label` of the common recipe write ids as text; a mapping may be given the wrong way round."""
    key = str if as_text else int
    id2label = {key(number): name for number, name in enumerate(names)}
    label2id = {name: key(number) for number, name in enumerate(names)}
    for mapping in (id2label, label2id):
        assert ids_by_name(mapping) == {name: number for number, name in enumerate(names)}
        assert names_by_id(mapping) == dict(enumerate(names))


@pytest.mark.parametrize("bad", [{"cat": "none"}, {"cat": -1}, {"cat": True}, {"cat": 0.5}, {"cat": None}, ["cat"], 3])
@pytest.mark.parametrize("function", [ids_by_name, names_by_id])
def test_what_is_no_id_is_named(function, bad):
    """An id is a whole number from 0 up, written or not."""
    with pytest.raises(InvalidInputError) as caught:
        function(bad, "the map")
    assert caught.value.name == "the map"


def test_digits_as_names_stay_names():
    """A model of digits calls its classes "0" to "9", with ids of another order perhaps."""
    assert ids_by_name({"1": "0", "0": "1"}) == {"1": 0, "0": 1}
    assert names_by_id({"0": "1", "1": "0"}) == {0: "1", 1: "0"}


def dataset(names=("dog", "cat")):
    features = Features({"label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"label": [0, 1, 0]}, features=features)


@pytest.mark.parametrize("align", [align_labels, align_known_labels])
@pytest.mark.parametrize("label2id", [{"cat": "0", "dog": "1"}, {"0": "cat", "1": "dog"}, {0: "cat", 1: "dog"}])
def test_labels_are_aligned_with_ids_as_text(align, label2id):
    """Also with an `id2label`, and with what a configuration keeps of text."""
    config = ViTConfig(id2label={"0": "cat", "1": "dog"}, label2id=label2id)
    for mapping in (label2id, config.label2id):
        aligned = align(dataset(), "label", mapping)
        assert aligned["label"][:] == [1, 0, 1]
        assert aligned.features["label"].names == ["cat", "dog"]


def test_other_names_are_seen_with_ids_as_text():
    """A configuration whose names were set afterwards keeps its keys as text; a shift must still be refused."""

    class Model:
        config = ViTConfig()

    Model.config.id2label = {"0": "cat", "1": "dog"}
    assert names_of_model(Model) == {0: "cat", 1: "dog"}
    check_names(["cat", "dog"], Model, "labels")
    with refused("labels: class 0", "dog"):
        check_names(["dog", "cat"], Model, "labels")


def test_boxes_are_numbered_with_ids_as_text():
    """As a detector's recipe writes them."""
    objects = [{"bbox": [[1.0, 1.0, 4.0, 4.0]], "category": ["dog"]}]
    data = Dataset.from_dict({"objects": objects, "width": [9], "height": [9]})
    for label2id in ({"cat": "0", "dog": "1"}, {"0": "cat", "1": "dog"}):
        assert prepare_boxes(data, label2id=label2id)[0]["objects"]["category"] == [1]
