"""A split decides what a model forgets and what it keeps: no row may be in two parts, or in the wrong one."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from errors import refused
from hypothesis import given, strategies as st
from PIL import UnidentifiedImageError

from gs_lora_peft.data import remove_classes, split_dataset, train_validation_split
from gs_lora_peft.data.classes import UnknownClassError

NAMES = ["ant", "bee", "cat", "dog"]
ROLES = ("forget", "retain", "old", "missing")


def make(labels, names=NAMES):
    feature = Value("int64") if names is None else ClassLabel(names=names)
    return Dataset.from_dict(
        {"row": list(range(len(labels))), "label": list(labels)}, Features({"row": Value("int64"), "label": feature})
    )


def rows(dataset):
    return dataset.with_format(None)["row"][:]


ANIMALS = make([0, 1, 2, 3] * 5)


@st.composite
def tasks(draw):
    """Labels in any order, one class to forget and one to retain at least, the others with any role."""
    num_classes = draw(st.integers(2, 6))
    labels = draw(st.permutations([c for c in range(num_classes) for _ in range(draw(st.integers(1, 9)))]))
    role_of = {c: draw(st.sampled_from(ROLES)) for c in range(num_classes)} | {0: "forget", 1: "retain"}
    return labels, {role: [c for c in role_of if role_of[c] == role] for role in ROLES}


@given(tasks())
def test_parts_are_a_partition_in_the_original_order(task):
    labels, classes = task
    split = split_dataset(make(labels, None), classes["forget"], old=classes["old"], missing=classes["missing"])
    parts = {role: rows(getattr(split, role)) for role in ROLES}
    assert sorted(chain.from_iterable(parts.values())) == list(range(len(labels)))
    for role, part in parts.items():
        assert part == sorted(part)
        assert {labels[row] for row in part} == set(classes[role])
        assert getattr(split, f"{role}_classes") == classes[role]


@given(tasks(), st.floats(0.01, 1), st.integers(0, 2**32))
def test_replay_draws_its_share_of_every_retained_class_and_nothing_else(task, ratio, seed):
    labels, classes = task
    kwargs = {"old": classes["old"], "missing": classes["missing"], "seed": seed}
    whole = split_dataset(make(labels, None), classes["forget"], **kwargs)
    split = split_dataset(make(labels, None), classes["forget"], replay_ratio=ratio, **kwargs)
    drawn, full = Counter(split.retain["label"][:]), Counter(labels)
    for class_id in classes["retain"]:
        assert drawn[class_id] == max(1, int(full[class_id] * ratio + 0.5))
    assert set(rows(split.retain)) <= set(rows(whole.retain))
    assert rows(split.retain) == sorted(rows(split.retain))
    for role in ("forget", "old", "missing"):
        assert rows(getattr(split, role)) == rows(getattr(whole, role))


@given(tasks(), st.integers(1, 10), st.integers(0, 2**32))
def test_shots_are_exact_or_refused(task, shots, seed):
    labels, classes = task
    kwargs = {"old": classes["old"], "missing": classes["missing"], "seed": seed}
    full = Counter(labels)
    short = [c for c in classes["forget"] + classes["retain"] if full[c] < shots]
    if short:
        with refused("shots", shots) as error:
            split_dataset(make(labels, None), classes["forget"], shots=shots, **kwargs)
        assert all(f"{c} has {full[c]}" in error.value.expected for c in short)
        return
    split = split_dataset(make(labels, None), classes["forget"], shots=shots, **kwargs)
    for role in ("forget", "retain"):
        assert Counter(getattr(split, role)["label"][:]) == dict.fromkeys(classes[role], shots)
    for role in ("old", "missing"):
        assert len(getattr(split, role)) == sum(full[c] for c in classes[role])


@given(st.integers(0, 2**64))
def test_the_same_seed_draws_the_same_rows(seed):
    dataset = make(list(range(4)) * 20)
    first, second = (split_dataset(dataset, ["bee"], shots=5, seed=seed) for _ in range(2))
    assert rows(first.forget) == rows(second.forget)
    assert rows(first.retain) == rows(second.retain)
    assert first.retain._fingerprint == second.retain._fingerprint, "caches of later transforms must be found again"


def test_another_seed_draws_other_rows():
    dataset = make(list(range(4)) * 50)
    drawn = {tuple(rows(split_dataset(dataset, ["bee"], shots=5, seed=seed).retain)) for seed in range(20)}
    assert len(drawn) == 20


def test_every_row_of_a_class_is_drawn_equally_often():
    dataset = make([0] * 10 + [1] * 10)
    drawn = Counter(row for seed in range(400) for row in rows(split_dataset(dataset, [0], shots=2, seed=seed).forget))
    assert set(drawn) == set(range(10))
    assert all(50 < count < 115 for count in drawn.values()), drawn  # 80 ± 4.4 standard deviations


def test_a_class_keeps_its_replayed_rows_from_task_to_task():
    """Otherwise a "small replay set" would add up to much of the data over the tasks."""
    dataset = make(list(range(4)) * 50)
    first = split_dataset(dataset, ["ant"], replay_ratio=0.1)
    second = split_dataset(dataset, ["bee"], old=["ant"], replay_ratio=0.1)
    assert set(rows(second.retain)) < set(rows(first.retain))


def test_a_smaller_draw_is_part_of_a_larger_one():
    draws = [set(rows(split_dataset(ANIMALS, ["ant"], shots=shots).retain)) for shots in range(1, 6)]
    assert all(small < large for small, large in pairwise(draws))


def test_names_ids_and_an_explicit_retain():
    split = split_dataset(ANIMALS, ["dog", 1], retain=["cat"])
    assert (split.forget_classes, split.retain_classes, split.old_classes, split.missing_classes) == (
        [3, 1],
        [2],
        [],
        [],
    )
    assert set(split.retain["label"]) == {2}
    assert len(split.forget) == 10
    assert len(split.retain) == 5, "a class named nowhere is in no part"


def test_without_retain_only_classes_with_rows_are_retained():
    """A dataset cut down to some classes often keeps the ClassLabel of all."""
    split = split_dataset(make([0, 2, 2]), ["ant"])
    assert split.retain_classes == [2]


def test_classes_forgotten_before_and_missing_ones_need_no_rows():
    split = split_dataset(make([0, 2]), ["ant"], old=["bee"], missing=np.array([3]))
    assert (split.old_classes, split.missing_classes) == ([1], [3])
    assert len(split.old) == len(split.missing) == 0
    assert split.old.features == split.forget.features


@pytest.mark.parametrize(
    ("forget", "kwargs", "name", "value", "said"),
    [
        (["Ant"], {}, "forget", ["Ant"], "forget[0]"),
        (["ant"], {"old": ["ant"]}, "forget", [0], "`old`"),
        (["ant", "bee"], {"retain": ["bee", "cat"]}, "retain", [1], "`forget`"),
        (["ant"], {"missing": ["ant"]}, "forget", [0], "`missing`"),
        (["ant"], {"missing": ["bee"], "old": ["bee"]}, "missing", [1], "`old`"),
        (NAMES, {}, "retain", [], "4"),
        (["ant"], {"missing": NAMES[1:]}, "retain", [], "4"),
        (["ant"], {"replay_ratio": 0.5, "shots": 2}, "shots", 2, "0.5"),
        (["ant"], {"label_column": "target"}, "label_column", "target", "['row', 'label']"),
    ],
)
def test_requests_that_cannot_be_meant(forget, kwargs, name, value, said):
    with refused(name, value) as error:
        split_dataset(ANIMALS, forget, **kwargs)
    assert said in error.value.expected + error.value.fix


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("forget", bad) for bad in ([], None, "ant", 1, {"ant"})),
        *((name, bad) for name in ("old", "missing", "retain") for bad in ("bee", 5, {"bee": 1})),
        ("retain", []),
        *(("replay_ratio", bad) for bad in (0, -0.1, 1.1, float("nan"), True, "0.1", None, [1])),
        *(("shots", bad) for bad in (0, -1, 1.5, True, "4", [4])),
        *(("seed", bad) for bad in (-1, None, 1.0, True, "1")),
    ],
)
def test_settings_of_another_type_or_out_of_range(name, bad):
    """The error names the argument and has the value."""
    with refused(name) as error:
        split_dataset(ANIMALS, **{"forget": ["ant"], name: bad})
    assert error.value.value is bad


def test_an_unknown_class_keeps_its_error_class():
    with refused("old", [9], UnknownClassError):
        split_dataset(ANIMALS, ["ant"], old=[9])


@pytest.mark.parametrize(
    ("labels", "kwargs", "name", "value", "said"),
    [
        ([1, 2], {}, "forget", [0], ["class 0"]),
        ([0, 2], {"retain": ["bee", "dog", "cat"]}, "retain", [1, 3], ["class 1, 3"]),
        ([0, 2], {"retain": ["bee"], "shots": 1}, "shots", 1, ["class 1 has 0"]),
        ([0, 0, 2, 1, 1, 1], {"shots": 3}, "shots", 3, ["class 0 has 2", "class 2 has 1"]),
        ([], {}, "forget", [0], ["class 0"]),
    ],
)
def test_classes_without_enough_rows(labels, kwargs, name, value, said):
    with refused(name, value) as error:
        split_dataset(make(labels), ["ant"], **kwargs)
    assert all(part in error.value.expected for part in said)


@pytest.mark.parametrize(
    ("value", "names", "ids"),
    [(None, NAMES, "0 to 3"), (-1, NAMES, "0 to 3"), (None, None, "0 up"), (-7, None, "0 up")],
)
def test_rows_without_a_label(value, names, ids):
    dataset = make([0, 1, value, 2, value], names)
    with refused("row 2, column 'label'", value) as error:
        split_dataset(dataset, [0])
    assert ids in error.value.expected
    with refused("row 2, column 'label'", value):
        train_validation_split(dataset, fraction=0.5)
    labelled = dataset.select([0, 1, 3])
    assert len(split_dataset(labelled, [0]).retain) == 2, "rows that are not selected do not matter"
    with refused("row 0, column 'label'"):  # the number is the row's in the dataset at hand
        split_dataset(dataset.select([4, 0, 1]), [0])


@pytest.mark.parametrize(
    ("column", "feature", "kind", "fix"),
    [
        (["ant", "bee"], Value("string"), "string", "class_encode_column('label')"),
        ([0.0, 1.0], Value("float32"), "float32", "cast_column('label'"),
        ([True, False], Value("bool"), "bool", "cast_column('label'"),
        ([[0], [1, 2]], List(ClassLabel(names=NAMES)), "List", "label_column"),
    ],
)
def test_columns_that_hold_no_ids(column, feature, kind, fix):
    dataset = Dataset.from_dict({"label": column}, Features({"label": feature}))
    with refused("column 'label'", kind) as error:
        split_dataset(dataset, [0])
    assert fix in error.value.fix


def test_datasets_that_cannot_be_split():
    with refused("dataset", ["train", "test"]) as error:
        split_dataset(DatasetDict(train=ANIMALS, test=ANIMALS), ["ant"])
    assert "dataset['train']" in error.value.fix
    with refused("dataset", "IterableDataset"):
        split_dataset(ANIMALS.to_iterable_dataset(), ["ant"])
    with refused("dataset", "list"):
        split_dataset([{"label": 0}], [0])


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "uint64"])
def test_integer_labels_of_every_width(dtype):
    dataset = Dataset.from_dict({"label": [7, 9, 7]}, Features({"label": Value(dtype)}))
    split = split_dataset(dataset, [7])
    assert (split.retain_classes, len(split.forget)) == ([9], 2)
    with refused("forget", ["seven"], UnknownClassError):
        split_dataset(dataset, ["seven"])
    gap = Dataset.from_dict({"label": [7, None, 9]}, Features({"label": Value(dtype)}))
    with refused("row 1, column 'label'", None):
        split_dataset(gap, [7])


def test_views_and_concatenations_are_read_through():
    """After shuffle, filter or concatenation the rows of the table are not those of the dataset."""
    shuffled = concatenate_datasets([ANIMALS.shuffle(seed=0), ANIMALS.select(range(3, 9))]).shuffle(seed=1)
    split = split_dataset(shuffled, ["cat"])
    expected = [(row, label) for row, label in zip(shuffled["row"], shuffled["label"], strict=True) if label == 2]
    assert list(zip(split.forget["row"], split.forget["label"], strict=True)) == expected
    assert len(split.retain) == len(shuffled) - len(expected)


def test_no_image_is_decoded_and_no_transform_is_run():
    """Splitting a million photos must not read them; a transform may be slow or random."""
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    broken = [{"bytes": b"no image", "path": None}] * 8
    dataset = Dataset.from_dict({"image": broken, "label": [0, 1, 2, 3] * 2}, features)
    split = split_dataset(dataset, ["ant"], old=["bee"], missing=["dog"], shots=1)
    assert split.forget.features == features
    train_validation_split(dataset, fraction=0.5)
    with pytest.raises(UnidentifiedImageError):
        split.forget[0]

    class TransformRan(Exception):
        pass

    def transform(batch):
        raise TransformRan

    split = split_dataset(ANIMALS.with_transform(transform), ["ant"], replay_ratio=0.5)
    with pytest.raises(TransformRan):
        split.retain[0]


def test_formats_and_columns_are_kept():
    formatted = ANIMALS.with_format("numpy", columns=["row"])
    split = split_dataset(formatted, ["ant"])
    assert split.retain.format == formatted.format
    assert split.retain.column_names == ANIMALS.column_names


def test_labels_are_read_from_the_table_and_not_row_by_row(monkeypatch):
    """Of a shuffled dataset, `dataset["label"]` makes Python lists, which takes seconds for a million rows."""
    labels = np.random.default_rng(0).integers(0, 1000, 100_000)
    dataset = Dataset.from_dict({"label": labels}).select(np.arange(99_999, -1, -1))
    reads = []
    for name in ("_getitem", "__iter__"):
        monkeypatch.setattr(Dataset, name, lambda self, *args, **kwargs: reads.append(args))
    split = split_dataset(dataset, range(20), old=range(20, 40), replay_ratio=0.05)
    train_validation_split(dataset)
    assert reads == []
    assert len(split.retain) == pytest.approx(4_800, rel=0.05)


@given(tasks(), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_validation_takes_its_share_and_leaves_a_row_of_each_class(task, fraction, seed):
    labels, _ = task
    full = Counter(labels)
    expected = {c: min(n - 1, int(n * fraction + 0.5)) for c, n in full.items()}
    if not any(expected.values()):
        with refused("fraction", fraction):
            train_validation_split(make(labels, None), fraction=fraction, seed=seed)
        return
    train, validation = train_validation_split(make(labels, None), fraction=fraction, seed=seed)
    assert Counter(validation["label"][:]) == {c: n for c, n in expected.items() if n}
    assert sorted(rows(train) + rows(validation)) == list(range(len(labels)))
    assert rows(train) == sorted(rows(train))
    assert rows(validation) == sorted(rows(validation))
    again = train_validation_split(make(labels, None), fraction=fraction, seed=seed)
    assert (rows(again[0]), rows(again[1])) == (rows(train), rows(validation))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), True, None])
def test_a_validation_part_is_a_part(fraction):
    with refused("fraction"):
        train_validation_split(ANIMALS, fraction=fraction)


def test_nothing_to_validate_on():
    with refused("fraction", 0.1):
        train_validation_split(make([]))
    with refused("seed", -1):
        train_validation_split(ANIMALS, seed=-1)


def test_removed_classes_leave_the_other_rows_as_they_were():
    chosen = ANIMALS.select([7, 3, 2, 1, 0, 5])
    left = remove_classes(chosen, ["bee", 2])
    assert rows(left) == [7, 3, 0]
    assert left.features == ANIMALS.features
    assert rows(remove_classes(make([0, 2, 0], None), [2])) == [0, 2]
    assert rows(remove_classes(make([0, 2, 0]), ["dog"])) == [0, 1, 2]
    with refused("classes", ["ape"], UnknownClassError):
        remove_classes(ANIMALS, ["ape"])
    with refused("classes", [0, 1, 2, 3]):
        remove_classes(ANIMALS, [0, 1, 2, 3])


@pytest.mark.shared
def test_real_faces(shared_data):
    """The numbers of the published protocol: a few people forgotten, a tenth of the others replayed, two tasks."""
    faces = Dataset.from_parquet(str(shared_data / "yale_faces" / "train.parquet"))
    full = Counter(faces["label"][:])
    first = split_dataset(faces, ["person_00", "person_07"], missing=["person_37"], replay_ratio=0.1)
    assert first.forget_classes == [0, 7]
    assert len(first.forget) == full[0] + full[7]
    assert len(first.missing) == full[37]
    assert Counter(first.retain["label"][:]) == {c: max(1, int(full[c] * 0.1 + 0.5)) for c in first.retain_classes}
    assert first.forget[0]["image"].size == (32, 32)

    second = split_dataset(faces, ["person_03"], old=first.forget_classes, missing=["person_37"], replay_ratio=0.1)
    assert len(second.old) == len(first.forget)
    assert set(second.retain_classes) == set(first.retain_classes) - {3}
    shots = split_dataset(faces, first.forget_classes, shots=4)
    assert (len(shots.forget), len(shots.retain)) == (8, 4 * 36)
    with refused("forget", ["Person_07"], UnknownClassError) as error:
        split_dataset(faces, ["Person_07"])
    assert error.value.nearest["Person_07"][0] == "person_07"
