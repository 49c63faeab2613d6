"""Reading and replacing a column of annotations in the Arrow table of a dataset, and the sizes of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Value
from PIL import Image as Pillow

from ...errors import InvalidInputError

BOX_KEYS = ("bbox", "bboxes", "boxes")
CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")

_UNKNOWN_SIZE = (np.inf, np.inf)  # no box lies outside of it
_ROTATED = (5, 6, 7, 8)  # EXIF orientations for which `datasets` rotates an image by 90 degrees


@dataclass(frozen=True)
class ObjectColumn:
    """All annotations in the table of a dataset, flattened from any of the usual layouts.

    Attributes:
        lengths (`np.ndarray` of shape `(rows,)`, int64):
            Number of annotations in each row of the table.
        fields (`dict[str, pyarrow.Array]`):
            One value for each annotation, in the order of the rows.
        features (`dict[str, Any]`):
            The `datasets` feature of one value of each field.
        boxes (`str`):
            The field of the boxes.
        categories (`str`):
            The field of the categories.
    """

    lengths: np.ndarray
    fields: dict[str, pa.Array]
    features: dict[str, Any]
    boxes: str
    categories: str

    def filtered(self, kept: np.ndarray) -> ObjectColumn:
        """The same rows with some of the annotations.

        Args:
            kept (`np.ndarray` of shape `(annotations,)`, bool):
                Whether each annotation is kept.

        Returns:
            [`ObjectColumn`]: The rows with the kept annotations.
        """
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        lengths = np.bincount(rows[kept], minlength=len(self.lengths))
        chosen = pa.array(np.flatnonzero(kept))
        fields = {name: values.take(chosen) for name, values in self.fields.items()}
        return ObjectColumn(lengths, fields, self.features, self.boxes, self.categories)

    def stored(self) -> tuple[pa.Array, dict[str, Any]]:
        """The column in Arrow, a struct of lists, and its feature."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.lengths)]), type=pa.int32())
        feature = {name: List(feature) for name, feature in self.features.items()}
        types = Features(feature).arrow_schema
        lists = [
            pa.ListArray.from_arrays(offsets, values).cast(types.field(name).type)
            for name, values in self.fields.items()
        ]
        return pa.StructArray.from_arrays(lists, names=list(self.fields)), feature


def is_object_column(dataset: Any, column: str) -> bool:
    """Whether a column holds the annotations of objects, several for each row, instead of a class of the whole row."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    return isinstance(feature, dict) or (isinstance(feature, (List, LargeList)) and isinstance(feature.feature, dict))


def read_object_column(dataset: Dataset, column: str) -> ObjectColumn:
    """Reads the annotations in the table of a dataset, including rows that a selection leaves out.

    Raises:
        InvalidInputError: If the dataset lacks the column, or the column lacks boxes or categories.
    """
    if column not in dataset.features:
        found = [name for name in dataset.features if is_object_column(dataset, name)]
        fix = f"Pass objects_column={found[0]!r}." if found else "Put boxes and categories in one column with `map`."
        raise InvalidInputError("objects_column", column, f"one of {list(dataset.features)}, with annotations", fix)
    features, layout = _fields(dataset.features[column], column)
    boxes, categories = (_key(features, keys, column) for keys in (BOX_KEYS, CATEGORY_KEYS))
    _check_box_feature(features[boxes], f"{column}[{boxes!r}]")
    lengths, fields = _flattened(dataset.data.column(column).combine_chunks(), layout)
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
    """Replaces the annotations of a dataset without copying its other columns.

    Args:
        dataset (`datasets.Dataset`):
            The dataset that the annotations were read from.
        column (`str`):
            The column of annotations.
        objects ([`ObjectColumn`]):
            The new annotations of all rows of the table.
        rows (`np.ndarray` of shape `(n,)`, *optional*, defaults to all):
            Rows of the dataset to select, in this order.

    Returns:
        `datasets.Dataset`: The dataset with the new annotations.
    """
    mapping = table_rows(dataset)
    # `add_column` rewrites the images of a selection. So the column is added to the whole table, before the selection.
    whole = Dataset(dataset.data, info=dataset.info.copy(), split=dataset.split, fingerprint=dataset._fingerprint)
    array, feature = objects.stored()
    new = f"new {column}"  # added first: a table without columns loses its rows
    whole = whole.add_column(new, array, feature=feature).remove_columns(column).rename_column(new, column)
    whole = whole.select_columns(dataset.column_names)
    chosen = mapping if rows is None else mapping[rows]
    part = whole.select(chosen) if rows is not None or dataset._indices is not None else whole
    part.set_format(**dataset.format)
    return part


def table_rows(dataset: Dataset) -> np.ndarray:
    """The row of the table behind each row of the dataset, int64; they differ after `select` and the like."""
    if dataset._indices is None:
        return np.arange(len(dataset))
    return dataset._indices.column(0).to_numpy().astype(np.int64)


def _fields(feature: Any, column: str) -> tuple[dict[str, Any], str]:
    """The feature of one value of each field, and the layout: "list" of structs or "struct" of lists."""
    if isinstance(feature, (List, LargeList)) and isinstance(feature.feature, dict):
        return dict(feature.feature), "list"
    if isinstance(feature, dict) and all(isinstance(inner, (List, LargeList)) for inner in feature.values()):
        return {name: inner.feature for name, inner in feature.items()}, "struct"
    kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    fix = "Pass the column of annotations as objects_column. Convert masks to boxes before."
    if feature == List(Value("null")):
        kind, fix = "empty lists", "Pass `features` where the dataset is made."
    expected = "annotations, lists of boxes and of categories for each image"
    raise InvalidInputError(f"column {column!r}", kind, expected, fix)


def _key(features: dict[str, Any], keys: tuple[str, ...], column: str) -> str:
    found = [key for key in keys if key in features]
    if len(found) != 1:
        masks = [name for name in features if "segment" in name or "mask" in name]
        fix = f"Convert {masks[0]!r} to boxes before." if masks and keys is BOX_KEYS else "Rename or remove fields."
        expected = f"fields with exactly one of {', '.join(keys)}"
        raise InvalidInputError(f"column {column!r}", list(features), expected, fix)
    return found[0]


def _check_box_feature(feature: Any, name: str) -> None:
    number = feature.feature if isinstance(feature, (List, LargeList)) else None
    if isinstance(number, Value) and number.dtype.startswith(("int", "uint", "float", "null")):
        return
    if feature == Value("null"):  # all lists are empty: images without objects
        return
    fix = "Convert masks and polygons to boxes before."
    raise InvalidInputError(name, feature, "four numbers (x, y, w, h) for each annotation", fix)


def _flattened(array: pa.Array, layout: str) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, pa.Array]]]:
    """The lengths of the rows, and the lengths and all values of each field."""
    if layout == "list":
        lengths, structs = _unlisted(array)
        names = [field.name for field in structs.type]
        return lengths, {name: (lengths, values) for name, values in zip(names, structs.flatten(), strict=True)}
    names = [field.name for field in array.type]
    fields = {name: _unlisted(values) for name, values in zip(names, array.flatten(), strict=True)}
    return next(iter(fields.values()))[0], fields


def _unlisted(array: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Lengths of the lists, 0 for a missing one, and their concatenated values."""
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), array.flatten()


def numbers_of(values: pa.Array) -> np.ndarray:
    """Boxes as an array of shape `(annotations, 4)`, float64. A box without four numbers becomes NaN."""
    if pa.types.is_null(values.type):
        return np.full((len(values), 4), np.nan)
    lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    boxes = np.full((len(values), 4), np.nan)
    complete = lengths == 4
    picked = values.take(pa.array(np.flatnonzero(complete))).flatten()
    boxes[complete] = picked.cast(pa.float64()).to_numpy(zero_copy_only=False).reshape(-1, 4)
    return boxes


def ids_and_names(values: pa.Array, feature: Any) -> tuple[np.ndarray, list[str] | None]:
    """Category ids (int64, -1 if missing) and the names of the categories. Strings become ids in sorted order.

    Raises:
        InvalidInputError: If the categories have another type.
    """
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


def stored_sizes(dataset: Dataset) -> np.ndarray | None:
    """The columns `width` and `height` as an array of shape `(rows, 2)`, float64; `None` if they are missing."""
    if not {"width", "height"} <= set(dataset.features):
        return None
    mapping = table_rows(dataset)
    columns = [dataset.data.column(name).to_numpy().astype(np.float64)[mapping] for name in ("width", "height")]
    return np.stack(columns, axis=1)


def header_sizes(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """Reads the width and height of some images, as training sees them, without decoding pixels.

    Args:
        dataset (`datasets.Dataset`):
            The dataset. The images are in `image`, else in the only column of images.
        rows (`np.ndarray` of shape `(n,)`, int64):
            Rows to read.

    Returns:
        `np.ndarray` of shape `(rows of the dataset, 2)`, float64, or `None`: Infinite for other rows and for images
        that cannot be opened here, such as remote ones. `None` if the dataset does not have one column of images.
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


def _header_size(stored: pa.StructScalar) -> tuple[float, float]:
    path, content = stored["path"].as_py(), stored["bytes"].as_buffer()
    if path is None and content is None:
        return _UNKNOWN_SIZE
    # A reader of the buffer copies only what Pillow reads.
    try:
        with Pillow.open(path if content is None else pa.BufferReader(content)) as image:
            # Without this check, Pillow would decode a PNG to find EXIF data after its pixels.
            is_rotated = "exif" in image.info and image.getexif().get(0x0112) in _ROTATED
            return image.size[::-1] if is_rotated else image.size
    except OSError:
        return _UNKNOWN_SIZE
