"""Raw sound, as `datasets` decodes it or as arrays, prepared by a model's feature extractor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from .rows import where


def is_sound(cell: Any) -> bool:
    """Whether a cell holds decoded sound: samples under `array` (of `datasets`' decoder, too)."""
    return (isinstance(cell, Mapping) and "array" in cell) or hasattr(cell, "get_all_samples")


def sound_features(extractor: Any, rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """What a feature extractor makes of the sounds of a column; those of several channels are mixed to one.

    Args:
        extractor (`transformers.SequenceFeatureExtractor`): the model's.
        rows (sequence of `Mapping`): rows with samples, or with samples under `array` and their rate under
            `sampling_rate`. Samples without a rate are taken for those of the extractor.
        column (`str`): the column of the sounds.

    Returns:
        `dict`: e.g. `input_values`, padded where the lengths differ.

    Raises:
        InvalidInputError: naming row and column, if there are no samples, or their rate is not the extractor's.
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
