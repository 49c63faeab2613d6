"""Samples to keep that come as a stream: read once, in order, and never held."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from ..errors import InvalidInputError, PrivateInputError
from .rows import label_name, no_label

_SHOWS_PROGRESS = 10_000  # rows to read past, from which on a bar is shown

logger = logging.get_logger(__name__)


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be read in its order: an `IterableDataset` of `datasets` or of torch."""
    return isinstance(dataset, (datasets.IterableDataset, IterableDataset))


class RetainStream:
    """The samples to keep of a stream, by their place: pass after pass, without the rows of other classes.

    It reads forwards and holds no rows: memory does not grow with their number. A place always stands for the same
    row, in every process, as long as each pass over the stream gives the same rows in the same order. A resumed
    training, further processes and worker processes therefore read past the rows that are not theirs.

    Each pass begins with `set_epoch(number)` of the stream, if it has that. A shuffled stream of `datasets` then has
    another order in every pass.

    Args:
        stream (`datasets.IterableDataset` or `torch.utils.data.IterableDataset`):
            Rows with labels. It must not be split by process or by worker.
        label_column (`str`):
            Column of the integer labels.

    Attributes:
        keeps (`Collection[int]`):
            The classes to keep. Set it before rows are read.
        drops (`Collection[int]`):
            The classes whose rows are left out.
    """

    name = "the retain set"

    def __init__(self, stream: Any, label_column: str):
        self.stream = stream
        self.label_column = label_column
        self.keeps: Collection[int] = ()
        self.drops: Collection[int] = ()
        self._rewind()

    @property
    def features(self) -> Mapping[str, Any] | None:
        """The columns and their types; `None` if the stream does not know them."""
        return getattr(self.stream, "features", None)

    @property
    def dataset(self) -> RetainStream:
        """Itself: the rows that pairs are drawn from, as in [`NamedRows`]."""
        return self

    def __len__(self) -> int:
        raise InvalidInputError(
            "retain_dataset",
            type(self.stream).__name__,
            "a map-style dataset for what passes over all samples to keep before the training",
            "Collect the stream, or a part of it, with datasets.Dataset.from_generator(...).",
        )

    def __getitem__(self, place: int) -> Any:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """Reads the rows at places from 0 up. A place before the last one starts the stream again.

        Raises:
            InvalidInputError: If a row has no label or one of an unknown class, or a pass has no row to keep.
        """
        if not places:
            return []
        # A process must not read on from another one's open files.
        if places[0] < self._next or self._process != os.getpid():
            self._rewind()
        behind = places[0] - self._next
        if behind >= _SHOWS_PROGRESS:
            logger.info(f"Reading past {behind:,} rows of the stream")
            bar = logging.tqdm(range(behind), desc="Reading past rows of the stream", leave=False)
            for _ in bar:
                self._advance()
        return [self._at(place) for place in places]

    def first(self, count: int) -> list[Any]:
        """The first rows to keep of the first pass, at most `count`; a new list, which this object does not hold."""
        self._rewind()
        rows = []
        for row in self._kept(0):
            rows.append(row)
            if len(rows) == count:
                break
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Without the open stream: a worker process begins anew."""
        return {**self.__dict__, "_rows": None, "_process": None}

    def _rewind(self) -> None:
        self._rows: Iterator[Any] | None = None
        self._next = 0
        self._process: int | None = os.getpid()

    def _at(self, place: int) -> Any:
        if place < self._next:
            self._rewind()
        row = self._advance()
        while self._next <= place:
            row = self._advance()
        return row

    def _advance(self) -> Any:
        if self._rows is None:
            self._rows = self._passes()
        row = next(self._rows)
        self._next += 1
        return row

    def _passes(self) -> Iterator[Any]:
        number = 0
        while True:
            row = None
            for row in self._kept(number):
                yield row
            if row is None:
                raise InvalidInputError(
                    "retain_dataset",
                    f"a stream without such rows in pass {number}",
                    "rows of classes to keep",
                    "Give a stream that can be read several times, with classes other than those to forget.",
                )
            number += 1

    def _kept(self, number: int) -> Iterator[Any]:
        stream = _with_own_epoch(self.stream)
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(number)
        for index, row in enumerate(_all_rows(stream)):
            if self._is_kept(row, index):
                yield row

    def _is_kept(self, row: Any, index: int) -> bool:
        column = label_name(row, self.label_column) if isinstance(row, Mapping) else None
        if column is None:
            if isinstance(row, Mapping):
                raise no_label(row, self.label_column)
            raise InvalidInputError(
                f"row {index} of {self.name}",
                type(row).__name__,
                "a dictionary",
                "Give a stream of dictionaries, without a format that returns tables.",
            )
        label = row[column]
        label = label.item() if hasattr(label, "item") else label
        if isinstance(label, int) and label in self.keeps:
            return True
        if isinstance(label, int) and label in self.drops:
            return False
        raise PrivateInputError(
            f"row {index} of {self.name}, column {column!r}",
            label,
            "the id of a class of the model's head",
            "Number the classes as the model does, and leave out rows without a label.",
        )


def _with_own_epoch(stream: Any) -> Any:
    """The stream with an epoch of its own: that of `datasets` is in memory that all workers share and change."""
    epoch = getattr(stream, "_epoch", None)
    if not isinstance(epoch, torch.Tensor):
        return stream
    own = object.__new__(type(stream))  # copy.copy would share the attributes
    vars(own).update(vars(stream), _epoch=epoch.clone())
    return own


def _all_rows(stream: Any) -> Iterator[Any]:
    if not isinstance(stream, datasets.IterableDataset) or get_worker_info() is None:
        yield from stream
        return
    # In a worker, an IterableDataset gives only the shards of that worker. Its batches are the same everywhere.
    for batch in stream.iter(batch_size=1):
        yield {name: cells[0] for name, cells in batch.items()}
