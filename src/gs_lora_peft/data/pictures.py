"""Finds files that are no pictures before long work meets them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .rows import NamedRows

_MOST = 10_000  # rows that are looked at: about a second
_AT_ONCE = 256  # rows whose files are in memory together
_SOUND: set[tuple[str, str]] = set()  # fingerprints and columns of data sets without fault


def check_pictures(dataset: Any, name: str) -> None:
    """Checks that the pictures of a data set can be read, as far as that is quick.

    Opens the files and compares their checksums, without decoding pixels: a missing or an empty file, another kind of
    file and a damaged PNG are found; a JPEG that breaks off is noticed only when its batch comes. Of more than 10,000
    rows it looks at as many, evenly spread. Columns of other kinds than `datasets.Image` are not looked at. A process
    looks once at a data set without fault: the next time it remembers the fingerprint of the data set.

    Args:
        dataset (map-style dataset):
            The data set.
        name (`str`):
            What errors call it, e.g. `"the training data"`.

    Raises:
        InvalidInputError: If a picture cannot be decoded. The error names row and column.
    """
    if not isinstance(dataset, datasets.Dataset):
        return
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _MOST)).astype(int))
    shown = dataset.format["columns"]
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image) and feature.decode and column in shown:
            if (dataset._fingerprint, column) in _SOUND:
                continue
            for row in _suspects(dataset, column, rows):
                NamedRows(dataset, name)[row]  # raises, unless Pillow forgives the damage
            _SOUND.add((dataset._fingerprint, column))


def _suspects(dataset: datasets.Dataset, column: str, rows: np.ndarray) -> Iterator[int]:
    """Yields the rows whose files Pillow finds fault with."""
    stored = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False)).with_format(None)
    for start in range(0, len(rows), _AT_ONCE):
        chosen = rows[start : start + _AT_ONCE].tolist()
        for row, cell in zip(chosen, stored[chosen][column], strict=True):
            if cell is not None and not _seems_sound(cell):
                yield row


def _seems_sound(cell: dict[str, Any]) -> bool:
    path, content = cell["path"], cell["bytes"]
    if content is None and (path is None or "://" in path or "::" in path):
        return True  # elsewhere, where looking is not quick
    try:
        with Image.open(path if content is None else BytesIO(content)) as picture:
            picture.verify()
    except Exception:  # each of Pillow's formats has errors of its own
        return False
    return True
