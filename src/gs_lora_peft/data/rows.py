"""Rows that know where they come from, and what their cells hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL.Image import Image as Picture
from torch.utils.data import Dataset

from ..errors import InvalidInputError
from ..images import is_scaled, to_image

# Modes whose pixels, as an array, say all there is. Indices into a palette and CMYK would pass for grey and RGBA.
_PLAIN_MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "F")


# Formats of `datasets` that give tables, of which no row is a dict.
_TABLES = ("arrow", "pandas", "polars")


class Row(dict):
    """
    A row of a data set.

    Attributes:
        origin (`tuple[NamedRows, int]` or `None`):
            Where it was read.
        changed (`bool`):
            Whether a cell is another one than the data set gave.
    """

    origin: tuple[NamedRows, int] | None = None
    changed = False

    def replaced(self, column: str, cell: Any) -> Row:
        """The same row with another cell."""
        row = Row({**self, column: cell})
        row.origin, row.changed = self.origin, True
        return row


class NamedRows(Dataset):
    """
    A map-style data set whose rows know where they come from. Errors name the number and the column of a broken row.

    Formats of `datasets` that give tables, such as `"pandas"`, are set aside: rows hold what no format gives.

    Args:
        dataset (map-style dataset):
            The rows.
        name (`str`, *optional*, defaults to `"the data set"`):
            What the data set is called in messages.
    """

    def __init__(self, dataset: Any, name: str = "the data set"):
        self.dataset = dataset
        self.name = name
        self._pictures: dict[str, Any] = {}
        self._stored: dict[str, datasets.Dataset] = {}
        self._rows = _without_tables(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Rows, in one go where the data set can: `datasets` is several times faster so.

        Raises:
            InvalidInputError: If a picture or a sound cannot be decoded, or there is none and a transform wants it.
        """
        try:
            rows = self._read(indices)
        except Exception as error:
            self._explain(indices, error)
            raise
        return [self._named(row, index) for row, index in zip(rows, indices, strict=True)]

    def where(self, index: int) -> str:
        """Words for the place of a row."""
        place = f"row {index} of {self.name}"
        if isinstance(self.dataset, datasets.Dataset) and self.dataset._indices is not None:
            # The user knows the data set before it was split, whose rows have other numbers.
            place += f" (row {self.dataset._indices.column(0)[int(index)].as_py()} of the data it was drawn from)"
        return place

    def stored_picture(self, index: int, column: str) -> Any:
        """The picture behind an array that a format has made of it, where the array does not say all; else `None`."""
        if column not in self._pictures:
            self._pictures[column] = self._without_format(column)
        pictures = self._pictures[column]
        if pictures is None:
            return None
        picture = pictures[int(index)][column]
        plain = not isinstance(picture, Picture) or picture.mode.startswith("I;16") or picture.mode in _PLAIN_MODES
        return None if plain else picture

    def stored(self, column: str, indices: Sequence[int]) -> list[Any]:
        """Cells of a column of a `datasets.Dataset` as they are stored, whatever a transform or a format gives."""
        if column not in self._stored:
            self._stored[column] = self.dataset.select_columns(column).with_format(None)
        return list(self._stored[column][[int(index) for index in indices]][column])

    def _without_format(self, column: str) -> datasets.Dataset | None:
        """A column of pictures alone and without the format, if there is a format that makes arrays of them."""
        data = self.dataset
        if not isinstance(data, datasets.Dataset) or data.format["type"] in (None, "custom"):
            return None
        if not isinstance(data.features.get(column), datasets.Image):
            return None
        return data.select_columns(column).with_format(None)

    def _read(self, indices: Sequence[int]) -> Sequence[Any]:
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
        """Finds the row that cannot be read, and raises what says so; else leaves a note on the error.

        Raises:
            InvalidInputError: If a cell of it cannot be decoded, or is empty where a transform wants it.
        """
        for index in indices:
            try:
                self._read([index])
            except Exception as again:
                if isinstance(self.dataset, datasets.Dataset):
                    self._refuse_cells(index, again)
                error.add_note(f"It was raised by {self.where(index)}.")
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
            except ImportError:  # the row is not to blame
                return
            except Exception as again:
                raise self._refusal(index, column, feature, stored, again) from again
        # Without a transform an empty cell is read as `None`.
        if empty and self.dataset.format["type"] == "custom":
            raise self._refusal(index, *empty[0], None, error) from error

    def _refusal(self, index: int, column: str, feature: Any, stored: Any, error: Exception) -> InvalidInputError:
        return InvalidInputError(
            f"{self.where(index)}, column {column!r}",
            _shown(stored),
            f"{type(feature).__name__.lower()} data that can be decoded",
            f"Repair it or leave the row out. The error behind it: {error}.",
        )


def _without_tables(dataset: Any) -> Any:
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] in _TABLES:
        return dataset.with_format(None, columns=dataset.format["columns"])
    return dataset


def where(row: Any, column: str, number: int = 0) -> str:
    """Words for a cell: the row in its data set, or, where that is not known, in the batch."""
    origin = getattr(row, "origin", None)
    place = origin[0].where(origin[1]) if origin else f"row {number} of the batch"
    return f"{place}, column {column!r}"


def no_column(row: Mapping[str, Any], argument: str, column: str, fix: str) -> InvalidInputError:
    """The error for rows without a column that an argument names."""
    return InvalidInputError(argument, column, f"one of {sorted(row)}, which a row holds", fix)


def picture_cell(row: Mapping[str, Any], column: str) -> Any:
    """A cell that holds a picture; the picture itself where a format of `datasets` has made an array of it that does
    not say all, such as the indices into a palette.
    """
    cell, origin = row[column], getattr(row, "origin", None)
    if origin is None or getattr(row, "changed", True) or not isinstance(cell, (np.ndarray, torch.Tensor)):
        return cell
    if cell.ndim == 3 and 3 in (cell.shape[0], cell.shape[-1]):  # neither a palette nor CMYK
        return cell
    stored = origin[0].stored_picture(origin[1], column)
    return cell if stored is None else stored


def picture_for(processor: Any, row: Mapping[str, Any], column: str, number: int = 0, mode: str | None = "RGB") -> Any:
    """
    What an image processor gets of a row: a PIL image of one mode, whatever the cell holds.

    Floats stay what they are where the processor does not rescale, and so does everything where no mode fits the
    model, as one of infrared.

    Args:
        processor (`transformers.BaseImageProcessor` or `None`):
            Says whether it rescales.
        row (`Mapping`):
            The cell.
        column (`str`):
            The cell.
        number (`int`, *optional*, defaults to 0):
            Place of the row in the batch, for rows of unknown origin.
        mode (`str` or `None`, *optional*, defaults to `"RGB"`):
            The mode of the picture.

    Raises:
        InvalidInputError: Naming row and column, as [`to_image`].
    """
    cell = picture_cell(row, column)
    if isinstance(cell, (np.ndarray, torch.Tensor, Picture)) and mode is None:
        return cell
    if is_scaled(cell, getattr(processor, "do_rescale", None)):
        return cell
    return to_image(cell, mode or "RGB", name=where(row, column, number))


def _shown(stored: Any) -> Any:
    """What is stored in a cell, without the bytes of its file."""
    if not isinstance(stored, Mapping):
        return stored
    content = stored.get("bytes")
    path = stored.get("path")
    return path if content is None else f"{len(content)} bytes" + (f" of {path}" if path else "")


def is_sound(cell: Any) -> bool:
    """Whether a cell holds decoded sound: samples under `array` (of `datasets`' decoder, too)."""
    return (isinstance(cell, Mapping) and "array" in cell) or hasattr(cell, "get_all_samples")


def sound_features(extractor: Any, rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """What a feature extractor makes of the sounds of a column; those of several channels are mixed to one.

    Args:
        extractor (`transformers.SequenceFeatureExtractor`):
            The model's.
        rows (sequence of `Mapping`):
            Rows with samples, or with samples under `array` and their rate under `sampling_rate`. Samples without a
            rate are taken for those of the extractor.
        column (`str`):
            The column of the sounds.

    Returns:
        `dict`: E.g. `input_values`, padded where the lengths differ.

    Raises:
        InvalidInputError: Naming row and column, if there are no samples, or their rate is not the extractor's.
    """
    rate = getattr(extractor, "sampling_rate", None)
    sounds = [_samples(row[column], rate, where(row, column, number)) for number, row in enumerate(rows)]
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
    if samples.ndim == 2:  # channels and samples, in whichever order
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1 or not samples.size:
        raise InvalidInputError(
            name, cell, "sound, as `datasets.Audio` decodes it or as an array", "Leave the row out."
        )
    return samples
