"""Reading COCO's annotation files as a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, List, Value

from ...errors import InvalidInputError, PrivateInputError
from ...io import StrPath, as_path

_ANNOTATION_KEYS = ("bbox", "category_id", "image_id")


def read_coco(annotation_file: StrPath, image_folder: StrPath) -> Dataset:
    """Reads a COCO annotation file (`instances_*.json`) and its folder of images as a dataset.

    Args:
        annotation_file (`str` or `os.PathLike`):
            JSON with `images`, `annotations` and `categories`.
        image_folder (`str` or `os.PathLike`):
            Folder of the files named in `images`. Reading a row reads its file.

    Returns:
        `datasets.Dataset`: A row for each image, in the order of the file: `image_id`, `image`, `width`, `height` and
        `objects` with `id`, `bbox` (x, y, w, h in pixels), `category`, `area` and `iscrowd`. Category ids number the
        categories in the order of COCO's ids, which may have gaps. `prepare_boxes(..., label2id=...)` replaces them by
        a model's ids.

    Raises:
        InvalidInputError: If the file is not a COCO annotation file with boxes; if an annotation has an image or a
            category that is not listed; if categories share a name; or if an image file is missing.

    Example:
        ```py
        >>> dataset = read_coco("annotations/instances_val2017.json", "val2017")
        >>> dataset = prepare_boxes(dataset, label2id=model.config.label2id, invalid="drop")
        ```
    """
    annotation_file, image_folder = as_path(annotation_file, "annotation_file"), as_path(image_folder, "image_folder")
    content = _content(annotation_file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        raise PrivateInputError("categories", names, f"a different name for each category of {annotation_file}")
    number_of = {category["id"]: number for number, category in enumerate(categories)}
    objects: dict[Any, dict[str, list[Any]]] = {
        image["id"]: {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []} for image in content["images"]
    }
    for number, annotation in enumerate(content["annotations"]):
        _check_annotation(annotation, objects, number_of)
        box = annotation["bbox"]
        row = objects[annotation["image_id"]]
        row["id"].append(annotation.get("id", number))
        row["bbox"].append(box)
        row["category"].append(number_of[annotation["category_id"]])
        row["area"].append(annotation.get("area", box[2] * box[3]))
        row["iscrowd"].append(bool(annotation.get("iscrowd", 0)))
    paths = [image_folder / image["file_name"] for image in content["images"]]
    absent = [number for number, path in enumerate(paths) if not path.is_file()]
    if absent:
        missing = f"{len(absent)} are missing, the first is number {absent[0]} of `images`, counted from 0"
        expected = f"a folder with the images of {annotation_file}; {missing}"
        raise InvalidInputError("image_folder", str(image_folder), expected)
    features = Features(
        {
            "image_id": Value("int64"),
            "image": Image(),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "id": List(Value("int64")),
                "bbox": List(List(Value("float64"), length=4)),
                "category": List(ClassLabel(names=names)),
                "area": List(Value("float64")),
                "iscrowd": List(Value("bool")),
            },
        }
    )
    columns = {
        "image_id": [image["id"] for image in content["images"]],
        "image": [str(path) for path in paths],
        "width": [image["width"] for image in content["images"]],
        "height": [image["height"] for image in content["images"]],
        "objects": list(objects.values()),
    }
    return Dataset.from_dict(columns, features=features)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        expected = "a COCO annotation file in JSON"
        raise InvalidInputError("annotation_file", str(path), expected, f"It cannot be read: {error}.") from error
    wanted = ("images", "annotations", "categories")
    held = sorted(content) if isinstance(content, Mapping) else type(content).__name__
    if not isinstance(content, Mapping) or not all(isinstance(content.get(name), list) for name in wanted):
        expected = f"the lists {', '.join(wanted)}"
        raise InvalidInputError(f"annotation_file {path}", held, expected, "Pass an `instances_*.json` file.")
    return dict(content)


def _check_annotation(annotation: Mapping[str, Any], images: Mapping[Any, Any], categories: Mapping[Any, Any]) -> None:
    name = f"annotation {annotation.get('id')}"
    absent = [key for key in _ANNOTATION_KEYS if key not in annotation]
    if absent:
        raise InvalidInputError(
            name, sorted(annotation), f"a box, with {', '.join(absent)}", "Convert masks to boxes before."
        )
    for key, part, listed in (("image_id", "images", images), ("category_id", "categories", categories)):
        if annotation[key] not in listed:
            raise InvalidInputError(f"{name}: {key}", annotation[key], f"an id that is listed in `{part}`")
    if len(annotation["bbox"]) != 4:
        raise InvalidInputError(f"{name}: bbox", annotation["bbox"], "(x, y, w, h)")
