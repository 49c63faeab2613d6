"""Width and height of a dataset's images, from columns or from the headers of the image files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image

from .box_columns import table_rows

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
        dataset (`datasets.Dataset`): Images are read from `image`, else from the only column that holds any.
        rows (`np.ndarray` of shape `(n,)`, int64): Which rows to read.

    Returns:
        `np.ndarray` of shape `(rows of the dataset, 2)`, float64: Infinite for other rows and for images that cannot
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
