"""Small datasets of annotated boxes in the layouts that datasets on the Hub have."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value

NAMES = ["ant", "bee", "cat", "dog"]


def picture(number, width=64, height=48):
    """A picture of one shade; its number says which."""
    from PIL import Image as Pillow

    return Pillow.fromarray(np.full((height, width, 3), number % 256, dtype=np.uint8))


def grid(count):
    """So many boxes (x, y, w, h) within 64×48 pixels, none like another."""
    return [[float(1 + 7 * (k % 8)), float(1 + 9 * (k // 8 % 5)), 5.0 + 0.25 * (k % 3), 6.0] for k in range(count)]


def make(categories, layout="struct", kind="label", images=False, **extra):
    """A dataset whose row i holds boxes of `categories[i]`.

    layout: "struct" (struct of lists) or "list" (list of structs); kind: "label" (ClassLabel), "id" or "name".
    extra: further fields of the annotations, lists of lists.
    """
    category = {"label": ClassLabel(names=NAMES), "id": Value("int64"), "name": Value("string")}[kind]
    own = [[NAMES[c] for c in row] if kind == "name" else list(row) for row in categories]
    columns = {"bbox": [grid(len(row)) for row in categories], "category": own, **extra}
    inner = {
        "bbox": List(Value("float32"), length=4) if layout == "struct" else List(Value("float64")),
        "category": category,
        **{name: Value("int64") for name in extra},
    }
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(categories))]
    if layout == "list":
        rows = [[dict(zip(row, item, strict=True)) for item in zip(*row.values(), strict=True)] for row in rows]
    features = {
        "image_id": Value("int64"),
        "width": Value("int32"),
        "height": Value("int32"),
        "objects": List(inner) if layout == "list" else {name: List(feature) for name, feature in inner.items()},
    }
    data = {
        "image_id": list(range(len(rows))),
        "width": [64] * len(rows),
        "height": [48] * len(rows),
        "objects": rows,
    }
    if images:
        features["image"] = Image()
        data["image"] = [picture(i) for i in range(len(rows))]
    return Dataset.from_dict(data, features=Features(features))


def found(dataset):
    """What a dataset holds: image → list of (category, x)."""
    plain = dataset.with_format(None).select_columns(["image_id", "objects"])
    return {
        row["image_id"]: [(c, b[0]) for c, b in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)]
        for row in plain
    }
