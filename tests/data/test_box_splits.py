"""A split of boxes decides what a detector is shown: nothing old may be in it, and mixed images serve both halves."""

from itertools import pairwise

import pytest
from box_cases import NAMES, found, make, picture
from datasets import DatasetDict, load_dataset
from errors import refused
from hypothesis import given, settings, strategies as st

from gs_lora_peft.data import remove_classes
from gs_lora_peft.data.boxes.annotations import InvalidBoxError
from gs_lora_peft.data.boxes.box_splits import split_boxes, train_validation_boxes

ROLES = ("forget", "retain", "old", "missing")
FIELD = [[0], [1], [0, 1], [2], [0, 2, 2], [1, 3], [], [3], [0, 1, 2, 3]]

quick = settings(max_examples=20, deadline=None)


@st.composite
def tasks(draw, spare=0):
    """Images with boxes of up to four categories; 0 is to forget, 1 to keep, the others have any role.

    spare: number of further images with only category 1.
    """
    drawn = draw(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12))
    categories = [*drawn, [0], [1], *[[1]] * spare]
    role_of = {0: "forget", 1: "retain", **{c: draw(st.sampled_from(ROLES)) for c in (2, 3)}}
    crowds = [[draw(st.integers(0, 3)) == 0 for _ in row] for row in drawn] + [[False]] * (2 + spare)
    # A category to forget or to keep has to have an image.
    present = {
        c for row, many in zip(categories, crowds, strict=True) for c, m in zip(row, many, strict=True) if not m
    }
    roles = {role: [c for c in role_of if role_of[c] == role] for role in ROLES}
    for role in ("forget", "retain"):
        roles[role] = [c for c in roles[role] if c in present]
    layout, kind = draw(st.sampled_from(["struct", "list"])), draw(st.sampled_from(["label", "id"]))
    iscrowd = [[int(m) for m in row] for row in crowds]
    return make(categories, layout, kind, iscrowd=iscrowd), categories, crowds, roles


def split_of(task, **kwargs):
    dataset, _, _, roles = task
    return split_boxes(
        dataset, roles["forget"], old=roles["old"], missing=roles["missing"], retain=roles["retain"], **kwargs
    )


def holders(categories, crowds, ids):
    """Images that hold an object, not only a crowd, of one of the categories."""
    return [
        i
        for i, row in enumerate(categories)
        if any(c in ids and not many for c, many in zip(row, crowds[i], strict=True))
    ]


@quick
@given(tasks())
def test_every_image_is_accounted_for(task):
    """Each part holds exactly the images with an object of its categories; mixed ones are in two."""
    _, categories, crowds, roles = task
    split = split_of(task)
    for role in ROLES:
        assert list(found(getattr(split, role))) == holders(categories, crowds, roles[role])
        assert getattr(split, f"{role}_classes") == roles[role]


@quick
@given(tasks(), st.floats(0.05, 1), st.integers(0, 2**32))
def test_nothing_forgotten_before_is_shown(task, ratio, seed):
    """The annotations shown are all those of the categories to forget and to keep, and of no other."""
    _, categories, _, roles = task
    split = split_of(task, replay_ratio=ratio, seed=seed)
    shown = {*roles["forget"], *roles["retain"]}
    for role, ids in (("forget", shown), ("retain", shown), ("old", roles["old"]), ("missing", roles["missing"])):
        for image, objects in found(getattr(split, role)).items():
            assert [c for c, _ in objects] == [c for c in categories[image] if c in ids]


@quick
@given(tasks(), st.floats(0.05, 1), st.integers(0, 2**32))
def test_replay_gives_every_category_its_share(task, ratio, seed):
    """A rare category must not fall out of the replay, nor a common one take it all."""
    _, categories, crowds, roles = task
    split = split_of(task, replay_ratio=ratio, seed=seed)
    drawn = list(found(split.retain))
    assert drawn == sorted(drawn)
    wanted = {c: max(1, int(len(holders(categories, crowds, [c])) * ratio + 0.5)) for c in roles["retain"]}
    for c, share in wanted.items():
        assert len(set(drawn) & set(holders(categories, crowds, [c]))) >= share
    assert len(drawn) <= sum(wanted.values())
    assert list(found(split.forget)) == holders(categories, crowds, roles["forget"]), (
        "only what is kept is thinned out"
    )


@quick
@given(tasks(), st.integers(1, 4), st.integers(0, 2**32))
def test_shots_are_kept_or_refused(task, shots, seed):
    """Few shots draw that number of images for each category; the error names categories with fewer."""
    _, categories, crowds, roles = task
    counts = {c: len(holders(categories, crowds, [c])) for c in roles["forget"] + roles["retain"]}
    if min(counts.values()) < shots:
        with refused("shots", shots):
            split_of(task, shots=shots, seed=seed)
        return
    split = split_of(task, shots=shots, seed=seed)
    for role in ("forget", "retain"):
        drawn = set(found(getattr(split, role)))
        assert len(drawn) <= shots * len(roles[role])
        assert all(len(drawn & set(holders(categories, crowds, [c]))) >= shots for c in roles[role])


@quick
@given(tasks(), st.integers(0, 2**32))
def test_the_same_seed_draws_the_same_images(task, seed):
    """Every process has to see the same split, and caches of later transforms must be found again."""
    first, second = split_of(task, replay_ratio=0.5, seed=seed), split_of(task, replay_ratio=0.5, seed=seed)
    for role in ROLES:
        assert found(getattr(first, role)) == found(getattr(second, role))
        assert getattr(first, role)._fingerprint == getattr(second, role)._fingerprint


def test_draws_are_nested_and_the_same_from_task_to_task():
    """Otherwise a small replay set would add up to much of the data over the tasks."""
    dataset = make([[0, 1, 2], [1, 2], [2], [1], [0, 3]] * 20)
    draws = [set(found(split_boxes(dataset, ["ant"], shots=n).retain)) for n in (1, 3, 9)]
    assert all(small < large for small, large in pairwise(draws))
    later = set(found(split_boxes(dataset, ["bee"], old=["ant"], shots=9).retain))
    assert later <= draws[-1]
    other = {tuple(found(split_boxes(dataset, ["ant"], shots=3, seed=seed).retain)) for seed in range(10)}
    assert len(other) == 10, "another seed draws other images"


def test_categories_share_images_where_they_can():
    """A replay of a tenth is about a tenth of the images, not a tenth for each of many categories."""
    dataset = make([[0], *[[1, 2, 3]] * 100])
    assert len(split_boxes(dataset, ["ant"], replay_ratio=0.1).retain) == 10


@pytest.mark.parametrize("layout", ["struct", "list"])
@pytest.mark.parametrize("kind", ["label", "id", "name"])
def test_layouts_are_split_alike(layout, kind):
    """Whatever the layout was, the parts hold a struct of lists with ids and keep the other fields."""
    ids = [[10 * i + k for k in range(len(row))] for i, row in enumerate(FIELD)]
    forget = [0] if kind == "id" else ["ant"]
    old = [3] if kind == "id" else ["dog"]
    split = split_boxes(make(FIELD, layout, kind, id=ids), forget, old=old)
    assert list(found(split.forget)) == [0, 2, 4, 8]
    assert list(found(split.retain)) == [1, 2, 3, 4, 5, 8]
    assert list(found(split.old)) == [5, 7, 8]
    assert [c for c, _ in found(split.retain)[8]] == [0, 1, 2]
    assert split.retain.with_format(None)[-1]["objects"]["id"] == [80, 81, 82]
    assert [c for c, _ in found(split.old)[8]] == [3]
    if kind != "id":
        assert split.forget.features["objects"]["category"].feature.names == NAMES


def test_only_the_rows_of_a_selection_count():
    """`select` and `shuffle` leave the table as it is: boxes of rows that were left out must not come back."""
    dataset = make([*FIELD, [2]], iscrowd=[[0] * len(row) for row in [*FIELD, [2]]])
    chosen = dataset.select([8, 2, 1, 4, 2])
    split = split_boxes(chosen, ["ant"], old=["cat"])
    assert split.forget["image_id"][:] == [8, 2, 4, 2]
    assert split.retain["image_id"][:] == [8, 2, 1, 2]
    assert [c for c, _ in found(split.retain)[8]] == [0, 1, 3]


def test_images_and_transforms_are_left_alone():
    """No image may be decoded for a split, and the user's augmentation has to go on working on the parts."""
    dataset = make(FIELD, images=True).shuffle(seed=1)

    class TransformRan(Exception):
        pass

    def transform(batch):
        raise TransformRan

    split = split_boxes(dataset.with_transform(transform), ["ant"])
    with pytest.raises(TransformRan):
        split.forget[0]
    for row in split.retain.with_format(None):
        assert row["image"].getpixel((0, 0)) == picture(row["image_id"]).getpixel((0, 0)), "boxes go with their image"


@pytest.mark.parametrize(
    ("kwargs", "name", "value"),
    [
        ({"forget": ["wasp"]}, "forget", ["wasp"]),
        ({"forget": ["ant"], "old": ["ant"]}, "forget", [0]),
        ({"forget": ["ant"], "retain": ["ant"]}, "retain", [0]),
        ({"forget": NAMES}, "retain", []),
        ({"forget": ["ant"], "replay_ratio": 0}, "replay_ratio", 0),
        ({"forget": ["ant"], "replay_ratio": 0.5, "shots": 2}, "shots", 2),
        ({"forget": ["ant"], "shots": 50}, "shots", 50),
        ({"forget": ["ant"], "objects_column": "boxes"}, "objects_column", "boxes"),
        ({"forget": ["ant"], "objects_column": "width"}, "column 'width'", "int32"),
    ],
)
def test_bad_requests_are_refused(kwargs, name, value):
    """Before any work."""
    with refused(name, value):
        split_boxes(make(FIELD), **kwargs)


def test_a_dataset_without_rows_or_of_several_splits_is_told_so():
    """Common slips: a filter that left nothing, and `load_dataset` without `split=`."""
    dataset = make(FIELD)
    with refused("forget", [0]):
        split_boxes(dataset.select([]), ["ant"])
    with refused("dataset", ["train"]):
        split_boxes(DatasetDict(train=dataset), ["ant"])
    with refused("dataset", "IterableDataset"):
        split_boxes(dataset.to_iterable_dataset(), ["ant"])


def test_a_box_without_area_stops_the_split():
    """Image processors leave such boxes out without a word, and an image might have nothing left."""
    dataset = make(FIELD)
    rows = dataset.to_list()
    rows[2]["objects"]["bbox"][1][2] = 0.0
    with refused("a box in row 2", kind=InvalidBoxError):
        split_boxes(dataset.from_list(rows, features=dataset.features), ["ant"])


def test_a_category_of_crowds_alone_has_no_image():
    """Processors drop crowds: a forget image with nothing but a crowd would have nothing to forget."""
    dataset = make([[0], [1]], iscrowd=[[1], [0]])
    with refused("forget", [0]):
        split_boxes(dataset, ["ant"])


@quick
@given(tasks(spare=10), st.floats(0.4, 0.95), st.integers(0, 2**32))
def test_validation_leaves_an_image_of_every_category(task, fraction, seed):
    """Each image is in one of the parts, and no category is lost for training."""
    dataset, categories, crowds, _ = task
    train, validation = (part["image_id"][:] for part in train_validation_boxes(dataset, "objects", fraction, seed))
    assert sorted(train + validation) == list(range(len(categories)))
    assert validation
    for c in range(4):
        own = holders(categories, crowds, [c])
        assert not own or set(own) & set(train)
        share = min(len(own) - 1, int(len(own) * fraction + 0.5))
        # The last image of another category stays in the training part: three at most.
        assert len(set(own) & set(validation)) >= share - 3


@pytest.mark.parametrize("fraction", [0, 1.0, 0.1])
def test_validation_that_cannot_be_taken(fraction):
    """An error is better than an empty evaluation."""
    with refused("fraction", fraction):
        train_validation_boxes(make([[0], [0, 1]]), fraction=fraction)


@pytest.mark.shared
def test_blood_cells(shared_data, tmp_path):
    """Real data: almost every image is mixed, and each serves both halves."""
    files = {"train": str(shared_data / "bccd" / "train.parquet")}
    dataset = load_dataset("parquet", data_files=files, split="train", cache_dir=tmp_path)
    split = split_boxes(dataset, ["WBC"], old=["Platelets"])
    objects = {role: [c for row in found(getattr(split, role)).values() for c, _ in row] for role in ROLES}
    assert (len(split.forget), len(split.retain), len(split.old)) == (290, 280, 162)
    assert objects["old"] == [0] * 292
    assert {*objects["forget"]} == {*objects["retain"]} == {1, 2}
    assert objects["forget"].count(2) == 301, "all white cells are in the images to forget them on"
    assert objects["retain"].count(1) == 3348, "and all red ones in those to keep them on"


@pytest.mark.parametrize("layout", ["struct", "list"])
@pytest.mark.parametrize("kind", ["label", "id", "name"])
def test_removed_categories_leave_all_images_and_the_other_boxes(layout, kind):
    dataset = make(FIELD, layout, kind, images=True).select([8, 0, 4, 6, 2])
    left = remove_classes(dataset, [0, 3], "objects")
    before, after = found(remove_classes(make(FIELD), [3], "objects")), found(left)
    assert list(after) == [8, 0, 4, 6, 2]
    assert after == {image: [box for box in before[image] if box[0] != 0] for image in after}
    assert left["image"][0] == dataset["image"][0]
    if kind != "id":
        assert left.features["objects"]["category"].feature.names == NAMES
    with refused("classes", [0, 1, 2, 3]):
        remove_classes(dataset, [0, 1, 2, 3], "objects")
