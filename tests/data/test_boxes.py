"""Annotated boxes come in many layouts and with many faults; training must see one layout and no fault."""

import json

import numpy as np
import pytest
from box_cases import NAMES, found, grid, make, picture
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from errors import refused
from PIL import Image as Pillow

from gs_lora_peft.data.boxes.annotations import InvalidBoxError, prepare_boxes
from gs_lora_peft.data.boxes.coco import read_coco

FIELD = [[0, 1], [2], [], [1, 1, 0]]
LABEL2ID = {"N/A": 5, "cat, tomcat": 1, "Dog": 2, "ANT": 7, "bee": 3}
BOXES, POLYGONS, IDS = List(List(Value("float64"))), List(List(List(Value("float64")))), List(Value("int64"))
ANNOTATION = {"image_id": 51, "category_id": 90, "bbox": [1, 2, 3, 4]}


def with_box(box, row=1, **columns):
    """The small dataset with another box in place of the first of a row."""
    dataset = make(FIELD)
    rows = dataset.to_list()
    rows[row]["objects"]["bbox"][0] = box
    return Dataset.from_list([{**r, **columns} for r in rows], features=dataset.features)


@pytest.mark.parametrize("layout", ["struct", "list"])
@pytest.mark.parametrize("kind", ["label", "name"])
def test_categories_are_numbered_as_the_model_does(layout, kind):
    """By name, synonyms and letter case included; gaps in the model's names stay gaps."""
    prepared = prepare_boxes(make(FIELD, layout, kind), label2id=LABEL2ID)
    new = {0: 7, 1: 3, 2: 1}
    assert [[c for c, _ in row] for row in found(prepared).values()] == [[new[c] for c in row] for row in FIELD]
    feature = prepared.features["objects"]["category"].feature
    assert [feature.int2str(i) for i in (7, 3, 1, 2, 0)] == ["ant", "bee", "cat", "Dog", "LABEL_0"]


def test_ids_without_names_are_the_models():
    """Plain ids cannot be matched by name: they count as the model's ids if they are in its range."""
    prepared = prepare_boxes(make(FIELD, kind="id"), label2id={"x": 0, "y": 1, "z": 2})
    assert [[c for c, _ in row] for row in found(prepared).values()] == FIELD
    with refused("column 'objects', category", [2]):
        prepare_boxes(make(FIELD, kind="id"), label2id={"x": 0, "y": 1})


def test_a_category_that_the_model_does_not_know_is_refused():
    """A head has no logit for it; a category without boxes does no harm."""
    with refused("column 'objects', category", ["cat"]):
        prepare_boxes(make(FIELD), label2id={"ant": 0, "bee": 1, "dog": 2})
    prepare_boxes(make(FIELD), label2id={"ant": 0, "bee": 1, "cat": 2})


def test_splits_of_names_are_numbered_alike():
    """The names of each split's own categories would give one category two ids."""
    splits = DatasetDict(train=make(FIELD, kind="name"), test=make([[1, 2]], kind="name"))
    with refused("column 'objects', category", {"train": NAMES[:3], "test": NAMES[1:3]}) as error:
        prepare_boxes(splits)
    assert "label2id" in error.value.fix
    prepared = prepare_boxes(splits, label2id={name: i for i, name in enumerate(NAMES)})
    assert [c for c, _ in found(prepared["test"])[0]] == [1, 2]


def test_corners_become_sizes():
    """Several sets on the Hub have (left, top, right, bottom)."""
    dataset = make(FIELD)
    rows = dataset.to_list()
    for row in rows:
        row["objects"]["bbox"] = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
    corners = Dataset.from_list(rows, features=dataset.features)
    assert found(prepare_boxes(corners, box_format="xyxy")) == found(dataset)
    wide = [[20.0, 10.0, 60.0, 40.0]] * 3
    rows[3]["objects"]["bbox"], rows[0]["objects"]["bbox"] = wide, wide[:2]
    with refused("a box in row 0", [20.0, 10.0, 60.0, 40.0], InvalidBoxError) as error:
        prepare_boxes(Dataset.from_list(rows, features=dataset.features))
    assert "box_format='xyxy'" in error.value.fix


@pytest.mark.parametrize(
    "box",
    [[1, 1, 0, 5], [1, 1, 5, -5], [1, float("nan"), 5, 5], [1, 1, float("inf"), 5], [70, 1, 5, 5], [-9, 1, 5, 5]],
)
def test_boxes_that_cannot_be_used(box):
    """Named with their row; `invalid="drop"` leaves these annotations out and no other."""
    dataset = with_box(box)
    with refused("a box in row 1", kind=InvalidBoxError) as error:
        prepare_boxes(dataset)
    assert str(error.value.value) == str([float(number) for number in box])
    kept = found(prepare_boxes(dataset, invalid="drop"))
    assert kept == {**found(make(FIELD)), 1: []}


@pytest.mark.parametrize("files", [False, True])
def test_sizes_are_read_from_headers_without_columns(tmp_path, monkeypatch, files):
    """Most sets have no sizes: boxes are compared with the images, of which no pixel is decoded."""
    dataset = with_box([70, 1, 5, 5]).remove_columns(["width", "height"])
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    images = paths if files else [{"bytes": (tmp_path / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    dataset = dataset.add_column("image", images).cast_column("image", Image()).select([3, 1, 0])
    monkeypatch.setattr(Pillow.Image, "load", lambda self: pytest.fail("pixels are decoded"))
    with refused("a box in row 1", [70.0, 1.0, 5.0, 5.0], InvalidBoxError) as error:
        prepare_boxes(dataset)
    assert "64×48" in error.value.expected
    assert found(prepare_boxes(dataset, invalid="drop"))[1] == []


def test_images_on_their_side_are_compared_as_training_sees_them(tmp_path):
    """`datasets` turns an image by its EXIF orientation: 64×48 in the header is 48×64 in training."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "0.jpg", exif=exif)
    rows = {"objects": [{"bbox": [[10.0, 50.0, 9.0, 9.0]], "category": [0]}], "image": [str(tmp_path / "0.jpg")]}
    dataset = Dataset.from_dict(rows).cast_column("image", Image())
    assert dataset[0]["image"].size == (48, 64)
    assert len(prepare_boxes(dataset)[0]["objects"]["bbox"]) == 1


@pytest.mark.parametrize("image", [None, "hf://datasets/user/elsewhere/0.png"])
def test_images_that_are_elsewhere_are_not_compared(image):
    """The size is unknown, and the box is not checked."""
    rows = {"objects": [{"bbox": [[70.0, 1.0, 5.0, 5.0]], "category": [0]}], "image": [image]}
    features = Features({"objects": {"bbox": List(List(Value("float64"))), "category": List(Value("int64"))}})
    dataset = Dataset.from_dict(rows, features=Features({**features, "image": Image()}))
    assert prepare_boxes(dataset).select_columns("objects")[0]["objects"]["bbox"] == [[70.0, 1.0, 5.0, 5.0]]


def test_boxes_over_the_border_stay():
    """Annotators draw over the border by a pixel or two; image processors cut that off."""
    box = [60.0, 40.0, 9.0, 9.0]
    assert prepare_boxes(with_box(box))[1]["objects"]["bbox"] == [box]


def test_shares_of_the_image_are_refused():
    """They would pass for boxes of less than a pixel."""
    dataset = make(FIELD)
    rows = dataset.to_list()
    for row in rows:
        row["objects"]["bbox"] = [[0.1, 0.2, 0.3, 0.4]] * len(row["objects"]["bbox"])
    with refused("a box in row 0", pytest.approx([0.1, 0.2, 0.3, 0.4]), InvalidBoxError):
        prepare_boxes(Dataset.from_list(rows, features=dataset.features))


@pytest.mark.parametrize(
    ("feature", "cell", "name", "value"),
    [
        (Image(), picture(0), "column 'objects'", "Image"),
        (
            {"segmentation": POLYGONS.feature, "category": IDS},
            None,
            "column 'objects'",
            ["segmentation", "category"],
        ),
        (
            {"bbox": POLYGONS, "category": IDS},
            {"bbox": [[[0.0, 1.0]]], "category": [0]},
            "objects['bbox']",
            POLYGONS.feature,
        ),
        ({"bbox": BOXES}, {"bbox": [[1.0, 2.0, 3.0, 4.0]]}, "column 'objects'", ["bbox"]),
        (
            {"bbox": BOXES, "category": IDS},
            {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0, 1]},
            "row 0 of the table, column 'objects'",
            "2 of 'category' and 1 of 'bbox'",
        ),
        (
            {"bbox": BOXES, "category": IDS},
            {"bbox": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "category": [0]},
            "a box in row 0",
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ),
        (List(Value("null")), [], "column 'objects'", "empty lists"),
        (
            {"bbox": List(Value("null")), "category": IDS},
            {"bbox": [None], "category": [0]},
            "a box in row 0",
            None,
        ),
        (
            {"bbox": BOXES, "category": IDS},
            {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [None]},
            "row 0, column 'objects', category",
            -1,
        ),
    ],
)
def test_what_is_no_box_is_told_so(feature, cell, name, value):
    """Masks, polygons and half annotations: the error says what was found, and where."""
    dataset = Dataset.from_dict({"objects": [cell]}, features=Features({"objects": feature}))
    with refused(name, value):
        prepare_boxes(dataset)


def test_images_without_annotations_stay_images():
    """An empty list and none at all are both an image without objects."""
    dataset = make(FIELD)
    rows = dataset.to_list()
    rows[3]["objects"] = None
    prepared = prepare_boxes(Dataset.from_list(rows, features=dataset.features))
    assert [len(row) for row in found(prepared).values()] == [2, 1, 0, 0]


def test_lists_that_are_all_empty_need_no_type():
    """`Dataset.from_dict` of images without annotations is valid: there are no boxes to refuse."""
    prepared = prepare_boxes(Dataset.from_dict({"objects": [{"bbox": [], "category": []}] * 2}), label2id=LABEL2ID)
    assert prepared[:]["objects"] == [{"bbox": [], "category": []}] * 2
    assert prepared.features["objects"]["bbox"] == List(List(Value("float64"), length=4))


def coco_file(folder, **changes):
    """A COCO annotation file with ids that have gaps, and its two images."""
    for number in range(2):
        picture(100 * number).save(folder / f"{number}.png")
    content = {
        "images": [{"id": 50 + n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(2)],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"id": 7, "image_id": 51, "category_id": 90, "bbox": grid(1)[0], "area": 11.5, "iscrowd": 0},
            {"id": 9, "image_id": 51, "category_id": 3, "bbox": grid(2)[1], "iscrowd": 1},
        ],
    } | changes
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_coco_files_are_read(tmp_path):
    """COCO's ids have gaps; the names lead to the model's."""
    dataset = prepare_boxes(read_coco(coco_file(tmp_path), tmp_path), label2id=LABEL2ID)
    assert np.array(dataset[1]["image"]).mean() == 100
    assert dataset.remove_columns("image").to_list() == [
        {
            "image_id": 50,
            "width": 64,
            "height": 48,
            "objects": {"bbox": [], "category": [], "id": [], "area": [], "iscrowd": []},
        },
        {
            "image_id": 51,
            "width": 64,
            "height": 48,
            "objects": {
                "bbox": [grid(1)[0], grid(2)[1]],
                "category": [1, 7],
                "id": [7, 9],
                "area": [11.5, grid(2)[1][2] * grid(2)[1][3]],
                "iscrowd": [False, True],
            },
        },
    ]


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        (
            {"annotations": [{"id": 7, "image_id": 51, "category_id": 90, "segmentation": [[1, 2]]}]},
            "annotation 7",
            ["category_id", "id", "image_id", "segmentation"],
        ),
        ({"annotations": [{"id": 7, **ANNOTATION, "image_id": 52}]}, "annotation 7: image_id", 52),
        ({"annotations": [{"id": 7, **ANNOTATION, "category_id": 91}]}, "annotation 7: category_id", 91),
        ({"annotations": [{"id": 7, **ANNOTATION, "bbox": [1, 2]}]}, "annotation 7: bbox", [1, 2]),
        ({"categories": [{"id": 3, "name": "ant"}, {"id": 90, "name": "ant"}]}, "categories", ["ant", "ant"]),
        ({"images": [{"id": 51, "file_name": "9.png", "width": 64, "height": 48}]}, "image_folder", "{}"),
        ({"images": None}, "annotation_file {}/instances.json", ["annotations", "categories", "images"]),
    ],
)
def test_broken_coco_files(tmp_path, changes, name, value):
    """Before an hour of training, with the annotation that is wrong."""
    value = value.format(tmp_path) if isinstance(value, str) else value
    with refused(name.format(tmp_path), value):
        read_coco(coco_file(tmp_path, **changes), tmp_path)
