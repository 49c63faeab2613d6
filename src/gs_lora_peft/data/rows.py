"""Rows that know where they come from, and how to read labels, pictures and sounds from their cells."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL.Image import Image as Picture
from torch.utils.data import Dataset

from ..compat import has_fixed_arrays, read_rows
from ..errors import InvalidInputError, PrivateInputError, cause
from ..images import is_scaled, to_image

# Modes whose pixel arrays are unambiguous. An array of palette indices looks like grey, and one of CMYK like RGBA.
_PLAIN_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F")

# Formats of `datasets` that return tables instead of dicts.
_TABLE_FORMATS = ("arrow", "pandas", "polars")

# Names of the labels in the batches and transforms of transformers.
LABEL_NAMES = ("labels", "label", "label_ids")


class Row(dict):
    """A row of a dataset.

    Attributes:
        origin (`tuple[NamedRows, int]` or `None`):
            The dataset and the index that the row was read from.
        changed (`bool`):
            Whether a cell was replaced.
    """

    origin: tuple[NamedRows, int] | None = None
    changed = False

    def replaced(self, column: str, cell: Any) -> Row:
        """The same row with another cell."""
        row = Row({**self, column: cell})
        row.origin, row.changed = self.origin, True
        return row


class NamedRows(Dataset):
    """A map-style dataset whose rows know where they come from. Errors name the number and the column of a broken row.

    Formats of `datasets` that return tables, such as `"pandas"`, are ignored: rows then have no format.

    Args:
        dataset (map-style dataset):
            The rows.
        name (`str`, *optional*, defaults to `"the data set"`):
            Name of the dataset in errors.
    """

    def __init__(self, dataset: Any, name: str = "the data set"):
        self.dataset = dataset
        self.name = name
        self._pictures: dict[str, Any] = {}
        self._stored: dict[str, datasets.Dataset] = {}
        self._rows = _without_tables(dataset)
        self._has_arrays = has_fixed_arrays(self._rows)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Reads rows, in one call if the dataset can: `datasets` is then several times faster.

        Raises:
            InvalidInputError: If a picture or a sound cannot be decoded, or is missing and a transform needs it.
        """
        try:
            rows = self._read(indices)
        except Exception as error:
            self._explain(indices, error)
            raise
        return [self._named(row, index) for row, index in zip(rows, indices, strict=True)]

    def row_name(self, index: int) -> str:
        """Name of a row in errors."""
        place = f"row {index} of {self.name}"
        if isinstance(self.dataset, datasets.Dataset) and self.dataset._indices is not None:
            # Users know the row numbers of the dataset before it was split.
            place += f" (row {self.dataset._indices.column(0)[int(index)].as_py()} of the data it was drawn from)"
        return place

    def stored_picture(self, index: int, column: str) -> Any:
        """The picture that a format has made an array of, if the array is ambiguous; else `None`."""
        if column not in self._pictures:
            self._pictures[column] = self._without_format(column)
        pictures = self._pictures[column]
        if pictures is None:
            return None
        picture = pictures[int(index)][column]
        plain = not isinstance(picture, Picture) or picture.mode.startswith("I;16") or picture.mode in _PLAIN_MODES
        return None if plain else picture

    def stored(self, column: str, indices: Sequence[int]) -> list[Any]:
        """Cells of a column of a `datasets.Dataset` as they are stored, without transform and format."""
        if column not in self._stored:
            self._stored[column] = self.dataset.select_columns(column).with_format(None)
        return list(self._stored[column][[int(index) for index in indices]][column])

    def _without_format(self, column: str) -> datasets.Dataset | None:
        """The dataset with a column of pictures only and without format, if its format makes arrays of them."""
        data = self.dataset
        if not isinstance(data, datasets.Dataset) or data.format["type"] in (None, "custom"):
            return None
        if not isinstance(data.features.get(column), datasets.Image):
            return None
        return data.select_columns(column).with_format(None)

    def _read(self, indices: Sequence[int]) -> Sequence[Any]:
        if self._has_arrays:
            return read_rows(self._rows, indices)
        if hasattr(self._rows, "__getitems__"):
            return self._rows.__getitems__(list(indices))
        return [self._rows[index] for index in indices]

    def _named(self, row: Any, index: int) -> Any:
        if not isinstance(row, dict):
            return row
        named = Row(row)
        named.origin = (self, index)
        return named

    def _explain(self, indices: Sequence[int], error: Exception) -> None:
        """Finds the row that cannot be read. Raises an error that names its cell, or adds a note to `error`.

        Raises:
            InvalidInputError: If a cell of the row cannot be decoded, or is empty and a transform needs it.
        """
        for index in indices:
            try:
                self._read([index])
            except Exception as again:
                if isinstance(self.dataset, datasets.Dataset):
                    self._refuse_cells(index, again)
                error.add_note(f"It was raised by {self.row_name(index)}.")
                return

    def _refuse_cells(self, index: int, error: Exception) -> None:
        empty = []
        for column, feature in self.dataset.features.items():
            if not getattr(feature, "decode", False):
                continue
            undecoded = self.dataset.select_columns(column).cast_column(column, type(feature)(decode=False))
            stored = undecoded.with_format(None)[int(index)][column]
            if stored is None:
                empty.append((column, feature))
                continue
            try:
                feature.decode_example(stored)
            except ImportError:  # not an error of the row
                return
            except Exception as again:
                raise self._refusal(index, column, feature, stored, again) from None
        # Without a transform an empty cell is read as `None`.
        if empty and self.dataset.format["type"] == "custom":
            raise self._refusal(index, *empty[0], None, error) from error

    def _refusal(self, index: int, column: str, feature: Any, stored: Any, error: Exception) -> InvalidInputError:
        held = stored if isinstance(stored, Mapping) else {}
        content, path = held.get("bytes"), held.get("path")
        return PrivateInputError(
            f"{self.row_name(index)}, column {column!r}",
            path if content is None else f"{len(content)} bytes",
            f"{type(feature).__name__.lower()} data that can be decoded",
            f"Repair it or remove the row. The cause: {cause(error, path)}.",
            None if stored is None else "a file" if content is None else f"{len(content)} bytes",
        )


def _without_tables(dataset: Any) -> Any:
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] in _TABLE_FORMATS:
        return dataset.with_format(None, columns=dataset.format["columns"])
    return dataset


def cell_name(row: Any, column: str, number: int = 0) -> str:
    """Name of a cell in errors: its row in the dataset, or row `number` of the batch if the dataset is unknown."""
    origin = getattr(row, "origin", None)
    place = origin[0].row_name(origin[1]) if origin else f"row {number} of the batch"
    return f"{place}, column {column!r}"


def no_column(row: Mapping[str, Any], argument: str, column: str, fix: str) -> InvalidInputError:
    """The error for rows without the column that an argument names."""
    return InvalidInputError(argument, column, f"one of {sorted(row)}, which a row holds", fix)


def label_name(row: Mapping[str, Any], label_column: str) -> str | None:
    """The column of the labels: `label_column`, or the name that a transform gives them; `None` if it is missing."""
    return next((name for name in (label_column, *LABEL_NAMES) if name in row), None)


def labels_of(rows: Sequence[Mapping[str, Any]], label_column: str) -> torch.Tensor:
    """The labels of rows, int64, shape `(rows,)`.

    Raises:
        InvalidInputError: If a label is missing or is not a whole number. The error names row and column.
    """
    return torch.tensor([_label(row, label_column, number) for number, row in enumerate(rows)], dtype=torch.int64)


def _label(row: Mapping[str, Any], label_column: str, number: int) -> int:
    # For each row: the two halves of a batch may come from datasets with different transforms.
    column = label_name(row, label_column)
    if column is None:
        raise no_label(row, label_column)
    label = row[column]
    try:
        return operator.index(label.item() if hasattr(label, "item") else label)
    except (TypeError, ValueError, RuntimeError):
        fix = "Number the classes, and remove unlabelled rows."
        raise PrivateInputError(cell_name(row, column, number), label, "a class id", fix) from None


def no_label(row: Mapping[str, Any], label_column: str) -> InvalidInputError:
    """The error for rows without labels."""
    fix = "Keep it in the transform of the dataset, or pass the column of the labels as `label_column`."
    return no_column(row, "label_column", label_column, fix)


def picture_cell(row: Mapping[str, Any], column: str) -> Any:
    """A cell that holds a picture.

    If a format of `datasets` has made an ambiguous array of the picture, such as the indices into a palette, this is
    the picture itself.
    """
    cell, origin = row[column], getattr(row, "origin", None)
    if origin is None or getattr(row, "changed", True) or not isinstance(cell, (np.ndarray, torch.Tensor)):
        return cell
    if cell.ndim == 3 and 3 in (cell.shape[0], cell.shape[-1]):  # neither a palette nor CMYK
        return cell
    stored = origin[0].stored_picture(origin[1], column)
    return cell if stored is None else stored


def picture_for(processor: Any, row: Mapping[str, Any], column: str, number: int = 0, mode: str | None = "RGB") -> Any:
    """The input of an image processor: a PIL image of one mode, whatever the cell holds.

    Floats stay as they are if the processor does not rescale.

    Args:
        processor (`transformers.BaseImageProcessor` or `None`):
            The image processor, which has `do_rescale`.
        row (`Mapping`):
            The row.
        column (`str`):
            The column of the picture.
        number (`int`, *optional*, defaults to 0):
            Place of the row in the batch, for rows of unknown origin.
        mode (`str` or `None`, *optional*, defaults to `"RGB"`):
            The mode of the picture. With `None` the picture stays as it is, for models of another number of channels.

    Returns:
        `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`: The picture.

    Raises:
        InvalidInputError: As in [`to_image`]. The error names row and column.
    """
    cell = picture_cell(row, column)
    if isinstance(cell, (np.ndarray, torch.Tensor, Picture)) and mode is None:
        return cell
    if is_scaled(cell, getattr(processor, "do_rescale", None)):
        return cell
    return to_image(cell, mode or "RGB", name=cell_name(row, column, number))


def may_be_input(cell: Any) -> bool:
    """Whether a model may take a cell: not text, not a picture, and not a single number, such as the row's id."""
    return not isinstance(cell, (str, bytes, Picture, Mapping, type(None))) and dimensions(cell) > 0


def dimensions(cell: Any) -> int:
    """The number of dimensions of a cell; 1 for a list, which may be ragged."""
    return getattr(cell, "ndim", 1 if isinstance(cell, (list, tuple)) else 0)


def is_sound(cell: Any) -> bool:
    """Whether a cell holds decoded sound: samples under `array`, or the decoder of `datasets`."""
    return (isinstance(cell, Mapping) and "array" in cell) or hasattr(cell, "get_all_samples")


def sound_features(extractor: Any, rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Extracts the features of the sounds of a column. Several channels are mixed to one.

    Args:
        extractor (`transformers.SequenceFeatureExtractor`):
            The model's feature extractor.
        rows (sequence of `Mapping`):
            Rows with samples, or with samples under `array` and their rate under `sampling_rate`. Samples without a
            rate count as samples at the extractor's rate.
        column (`str`):
            The column of the sounds.

    Returns:
        `dict`: For instance `input_values`, padded if the lengths differ.

    Raises:
        InvalidInputError: If samples are missing, or their rate is not the extractor's. The error names the cell.
    """
    rate = getattr(extractor, "sampling_rate", None)
    sounds = [_samples(row[column], rate, cell_name(row, column, number)) for number, row in enumerate(rows)]
    options: dict[str, Any] = {"sampling_rate": rate, "return_tensors": "pt"}
    padding = inspect.signature(type(extractor).__call__).parameters.get("padding")
    if padding is not None and padding.default is False:  # else the extractor pads to the length its model wants
        options["padding"] = True
    return dict(extractor(sounds, **options))


def _samples(cell: Any, rate: int | None, name: str) -> np.ndarray:
    """Float samples of one channel, shape `(samples,)`."""
    if is_sound(cell):
        cell, own = cell["array"], cell["sampling_rate"]
        if rate is not None and own != rate:
            raise InvalidInputError(
                name,
                f"sound of {own} samples a second",
                f"{rate} samples a second",
                f"Resample it: dataset.cast_column(..., datasets.Audio(sampling_rate={rate})).",
            )
    samples: np.ndarray
    try:
        samples = np.asarray(cell, dtype=np.float32)
    except (TypeError, ValueError):
        samples = np.zeros(0)
    if samples.ndim == 2:  # channels and samples, in either order
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1 or not samples.size:
        raise PrivateInputError(name, cell, "sound, as `datasets.Audio` decodes it or as an array", "Remove the row.")
    return samples
