"""The samples of an attacker and of the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..data import NamedRows, is_object_column, read_classes
from ..errors import InvalidInputError

Batch = dict[str, Any]


class Samples:
    """Labelled rows, which are collated when they are needed.

    Args:
        dataset (`datasets.Dataset`):
            Labelled rows.
        data_collator (`Callable`):
            Makes a batch with `labels` of a list of rows.
        label_column (`str`, *optional*, defaults to `"label"`):
            Column of the labels, or of annotated boxes.
        rows (`Sequence[int]`, *optional*):
            The rows to use, in this order; by default all.

    Attributes:
        labels (`np.ndarray`):
            Class id of each row, int64, shape `(n,)`; empty for annotated boxes, where a row has many.

    Raises:
        InvalidInputError: If there are no rows.
    """

    def __init__(
        self,
        dataset: Any,
        data_collator: Callable[[list[Any]], Any],
        label_column: str = "label",
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        self.dataset = dataset
        self.data_collator = data_collator
        self.label_column = label_column
        self.rows = np.arange(len(dataset)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) == 0:
            raise InvalidInputError("dataset", "no rows", "at least one labelled row", "Pass a split that has some.")
        # Of boxes, there may be as many as rows.
        boxes = is_object_column(dataset, label_column)
        self.labels = np.array([], dtype=np.int64) if boxes else read_classes(dataset, label_column)[0][self.rows]
        self._named = NamedRows(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, classes: Sequence[int]) -> np.ndarray:
        """Returns the positions of the rows of some classes, int64, in order."""
        return np.flatnonzero(np.isin(self.labels, list(classes)))

    def capped(self, limit: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the positions of at most `limit` rows in order: as many of each class as possible, or any images."""
        if len(self) <= limit:
            return np.arange(len(self))
        if not len(self.labels):
            return np.sort(rng.permutation(len(self))[:limit])
        classes = np.unique(self.labels)
        each = max(1, limit // len(classes))
        chosen = [rng.permutation(np.flatnonzero(self.labels == class_id))[:each] for class_id in classes]
        return np.sort(np.concatenate(chosen))

    def limited(self, limit: int, rng: np.random.Generator) -> Samples:
        """Returns at most `limit` of the samples, see [`~Samples.capped`]."""
        if len(self) <= limit:
            return self
        return Samples(self.dataset, self.data_collator, self.label_column, self.rows[self.capped(limit, rng)])

    def batch(self, positions: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Collates some rows into one batch on a device."""
        # One call for all rows: a table of datasets reads them several times as fast as one by one.
        rows = self._named.__getitems__([int(self.rows[position]) for position in positions])
        batch = self.data_collator(rows)
        return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}

    def batches(
        self,
        positions: Sequence[int] | np.ndarray | None = None,
        *,
        size: int = 128,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Collates rows in their order, by default all, into batches of at most `size`."""
        chosen = np.arange(len(self)) if positions is None else np.asarray(positions)
        for start in range(0, len(chosen), size):
            yield self.batch(chosen[start : start + size], device)
