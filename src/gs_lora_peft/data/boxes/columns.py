"""The column of annotations as Arrow stores it, and the sizes of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value

from ...errors import InvalidInputError

BOX_KEYS = ("bbox", "bboxes", "boxes")


CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")


@dataclass(frozen=True)
class ObjectColumn:
    """
    All annotations of the table under a dataset, flattened, whichever of the usual layouts they are stored in.

    Attributes:
        lengths (`np.ndarray` of shape `(rows,)`, int64):
            Number of annotations of each row of the table.
        fields (`dict[str, pyarrow.Array]`):
            One value for each annotation, the rows' one behind the other.
        features (`dict[str, Any]`):
            The `datasets` feature of one value of each field.
        boxes (`str`):
            Which field holds the boxes.
        categories (`str`):
            Which field holds the categories.
    """

    lengths: np.ndarray
    fields: dict[str, pa.Array]
    features: dict[str, Any]
    boxes: str
    categories: str

    def filtered(self, kept: np.ndarray) -> ObjectColumn:
        """The same rows with some annotations only.

        Args:
            kept (`np.ndarray` of shape `(annotations,)`, bool):
                Which ones.
        """
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        lengths = np.bincount(rows[kept], minlength=len(self.lengths))
        chosen = pa.array(np.flatnonzero(kept))
        fields = {name: values.take(chosen) for name, values in self.fields.items()}
        return ObjectColumn(lengths, fields, self.features, self.boxes, self.categories)

    def stored(self) -> tuple[pa.Array, dict[str, Any]]:
        """The column as a struct of lists, and its feature."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.lengths)]), type=pa.int32())
        feature = {name: List(feature) for name, feature in self.features.items()}
        types = Features(feature).arrow_schema
        lists = [
            pa.ListArray.from_arrays(offsets, values).cast(types.field(name).type)
            for name, values in self.fields.items()
        ]
        return pa.StructArray.from_arrays(lists, names=list(self.fields)), feature


def is_object_column(dataset: Any, column: str) -> bool:
    """Whether a column holds annotations of objects, several for each row, and no class of the whole row."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    return isinstance(feature, dict) or (isinstance(feature, (List, LargeList)) and isinstance(feature.feature, dict))


def read_object_column(dataset: Dataset, column: str) -> ObjectColumn:
    """The annotations of the table under a dataset, with those of rows that the dataset has left out.

    Raises:
        InvalidInputError: There is no such column, or it holds no boxes and categories.
    """
    if column not in dataset.features:
        found = [name for name in dataset.features if is_object_column(dataset, name)]
        fix = f"Pass objects_column={found[0]!r}." if found else "Gather boxes and categories in one with `map`."
        raise InvalidInputError("objects_column", column, f"one of {list(dataset.features)}, with annotations", fix)
    features, outer = _fields(dataset.features[column], column)
    boxes, categories = (_key(features, keys, column) for keys in (BOX_KEYS, CATEGORY_KEYS))
    _check_box_feature(features[boxes], f"{column}[{boxes!r}]")
    lengths, fields = _flattened(dataset.data.column(column).combine_chunks(), outer)
    for name, (own, _) in fields.items():
        if not np.array_equal(own, lengths):
            row = int(np.flatnonzero(own != lengths)[0])
            raise InvalidInputError(
                f"row {row} of the table, column {column!r}",
                f"{own[row]} of {name!r} and {lengths[row]} of {next(iter(fields))!r}",
                "one for each annotation",
                "Correct the annotations of this image.",
            )
    return ObjectColumn(lengths, {name: values for name, (_, values) in fields.items()}, features, boxes, categories)


def replaced(dataset: Dataset, column: str, objects: ObjectColumn, rows: np.ndarray | None = None) -> Dataset:
    """The dataset with other annotations; nothing else of it is copied.

    Args:
        dataset (`datasets.Dataset`):
            What the annotations were read from.
        column (`str`):
            The column of annotations.
        objects ([`ObjectColumn`]):
            The new ones, of all rows of the table.
        rows (`np.ndarray` of shape `(n,)`, *optional*, defaults to all):
            Rows of the dataset to take, in this order.
    """
    mapping = table_rows(dataset)
    # `add_column` writes the images of a selection anew: the column is added to the whole table, then selected from.
    whole = Dataset(dataset.data, info=dataset.info.copy(), split=dataset.split, fingerprint=dataset._fingerprint)
    array, feature = objects.stored()
    new = f"new {column}"  # a table that has lost its only column has lost its rows
    whole = whole.add_column(new, array, feature=feature).remove_columns(column).rename_column(new, column)
    whole = whole.select_columns(dataset.column_names)
    chosen = mapping if rows is None else mapping[rows]
    part = whole.select(chosen) if rows is not None or dataset._indices is not None else whole
    part.set_format(**dataset.format)
    return part


def table_rows(dataset: Dataset) -> np.ndarray:
    """Which row of the table each row of the dataset is, int64: another after `select`, `filter` or `shuffle`."""
    if dataset._indices is None:
        return np.arange(len(dataset))
    return dataset._indices.column(0).to_numpy().astype(np.int64)


def _fields(feature: Any, column: str) -> tuple[dict[str, Any], str]:
    """The feature of one value of each field, and whether the column is a struct of lists or a list of structs."""
    if isinstance(feature, (List, LargeList)) and isinstance(feature.feature, dict):
        return dict(feature.feature), "list"
    if isinstance(feature, dict) and all(isinstance(inner, (List, LargeList)) for inner in feature.values()):
        return {name: inner.feature for name, inner in feature.items()}, "struct"
    kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    fix = "Pass the column of annotations as objects_column; make boxes from masks before."
    if feature == List(Value("null")):
        kind, fix = "empty lists", "Give the dataset its features where it is made."
    expected = "annotations, lists of boxes and of categories for each image"
    raise InvalidInputError(f"column {column!r}", kind, expected, fix)


def _key(features: dict[str, Any], keys: tuple[str, ...], column: str) -> str:
    found = [key for key in keys if key in features]
    if len(found) != 1:
        masks = [name for name in features if "segment" in name or "mask" in name]
        fix = f"Make boxes from {masks[0]!r} before." if masks and keys is BOX_KEYS else "Rename or remove fields."
        expected = f"fields with exactly one of {', '.join(keys)}"
        raise InvalidInputError(f"column {column!r}", list(features), expected, fix)
    return found[0]


def _check_box_feature(feature: Any, name: str) -> None:
    number = feature.feature if isinstance(feature, (List, LargeList)) else None
    if isinstance(number, Value) and number.dtype.startswith(("int", "uint", "float", "null")):
        return
    if feature == Value("null"):  # no list holds anything: images without objects
        return
    fix = "Make the boxes around masks and polygons before."
    raise InvalidInputError(name, feature, "four numbers (x, y, w, h) for each annotation", fix)


def _flattened(array: pa.Array, outer: str) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, pa.Array]]]:
    """The lengths of the rows, and the lengths and all values of each field."""
    if outer == "list":
        lengths, structs = _unlisted(array)
        names = [field.name for field in structs.type]
        return lengths, {name: (lengths, values) for name, values in zip(names, structs.flatten(), strict=True)}
    names = [field.name for field in array.type]
    fields = {name: _unlisted(values) for name, values in zip(names, array.flatten(), strict=True)}
    return next(iter(fields.values()))[0], fields


def _unlisted(array: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Lengths of the lists, 0 for none at all, and their values one behind the other."""
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), array.flatten()


def numbers_of(values: pa.Array) -> np.ndarray:
    """Boxes as an array of shape `(annotations, 4)`, float64; NaN all over where a box has not four numbers."""
    if pa.types.is_null(values.type):
        return np.full((len(values), 4), np.nan)
    lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    boxes = np.full((len(values), 4), np.nan)
    whole = lengths == 4
    picked = values.take(pa.array(np.flatnonzero(whole))).flatten()
    boxes[whole] = picked.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, 4)
    return boxes


def named(values: pa.Array, feature: Any) -> tuple[np.ndarray, list[str] | None]:
    """Category ids (int64, -1 for none) and the names of the categories; those of strings are in their own order."""
    if pa.types.is_null(values.type):
        return np.full(len(values), -1), None
    if isinstance(feature, ClassLabel):
        return values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), list(feature.names)
    if pa.types.is_integer(values.type):
        return values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), None
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        names = sorted(name for name in values.unique().to_pylist() if name is not None)
        ids = values.cast(pa.large_string())
        found = pa.compute.index_in(ids, value_set=pa.array(names, type=pa.large_string()))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), names
    expected = "a ClassLabel, whole numbers or names"
    raise InvalidInputError("category", feature, expected, "Cast the categories with `dataset.cast`.")


_UNKNOWN = (np.inf, np.inf)  # no box lies outside


_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations with which `datasets` turns an image by a quarter


def stored_sizes(dataset: Dataset) -> np.ndarray | None:
    """The columns `width` and `height` as an array of shape `(rows, 2)`, float64; `None` where they are missing."""
    if not {"width", "height"} <= set(dataset.features):
        return None
    mapping = table_rows(dataset)
    columns = [dataset.data.column(name).to_numpy().astype(np.float64)[mapping] for name in ("width", "height")]
    return np.stack(columns, axis=1)


def header_sizes(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Width and height of some images as training sees them. Their pixels are not decoded.

    Args:
        dataset (`datasets.Dataset`):
            Images are read from `image`, else from the only column that holds any.
        rows (`np.ndarray` of shape `(n,)`, int64):
            Which rows to read.

    Returns:
        `np.ndarray` of shape `(rows of the dataset, 2)`, float64: Infinite for other rows and for images that cannot.
        be opened here, as those at remote addresses. `None` where no column of images was found.
    """
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if "image" in columns:
        columns = ["image"]
    if len(columns) != 1:
        return None
    images, mapping = dataset.data.column(columns[0]), table_rows(dataset)
    sizes = np.full((len(mapping), 2), np.inf)
    for row in np.unique(rows).tolist():
        sizes[row] = _header_size(images[int(mapping[row])])
    return sizes


def _header_size(stored: pa.StructScalar) -> Any:
    from PIL import Image as Pillow

    path, content = stored["path"].as_py(), stored["bytes"].as_buffer()
    if path is None and content is None:
        return _UNKNOWN
    # A reader of the buffer copies no more of a file than Pillow asks for.
    try:
        with Pillow.open(path if content is None else pa.BufferReader(content)) as image:
            # Pillow would decode a PNG to look for EXIF data behind its pixels.
            turned = "exif" in image.info and image.getexif().get(0x0112) in _ON_THEIR_SIDE
            return image.size[::-1] if turned else image.size
    except OSError:
        return _UNKNOWN
