"""Paired batches of samples to keep and to forget, and the check that a batch has the stored labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset, Sampler

from ..checking import Count, checked
from ..errors import InvalidInputError
from .boxes.collation import DetectionCollator
from .boxes.columns import CATEGORY_KEYS, is_object_column
from .classes import read_labels
from .rows import NamedRows, cell_name, label_name
from .streaming import RetainStream

Pair = tuple[int, int]

EpochCovers = Literal["both", "retain", "forget"]

_CHECKED_ROWS = 32  # rows to check before any work; decoding them takes a fraction of a second

_KEEP_LABELS = (
    "Store the model's class ids, with dataset.map or gs_lora_peft.data.align_labels, and do not change the labels in "
    "the transform of the dataset or in `data_collator`."
)


class PairedDataset(TorchDataset):
    """Samples addressed by a pair of indices: one into the retain set, one into the forget set.

    Args:
        retain (map-style dataset or [`RetainStream`]):
            D_r, the samples to keep.
        forget (map-style dataset):
            D_f, the samples to forget.

    Raises:
        InvalidInputError: If one of them is empty or is not a map-style dataset with a length.
    """

    def __init__(self, retain: Any, forget: Any):
        for name, dataset in (("retain", retain), ("forget", forget)):
            if name == "retain" and isinstance(dataset, RetainStream):
                continue
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise InvalidInputError(
                    name,
                    type(dataset).__name__,
                    "a map-style dataset with a length",
                    "Collect the stream with datasets.Dataset.from_generator(...).",
                )
            if len(dataset) == 0:
                expected = "at least one sample, because a paired batch needs one of each set"
                raise InvalidInputError(name, "an empty data set", expected)
        self.retain = retain
        self.forget = forget

    @property
    def retain(self) -> Any:
        """The samples to keep."""
        return self._retain.dataset

    @retain.setter
    def retain(self, dataset: Any) -> None:
        self._retain = dataset if isinstance(dataset, RetainStream) else NamedRows(dataset, "the retain set")

    @property
    def forget(self) -> Any:
        """The samples to forget."""
        return self._forget.dataset

    @forget.setter
    def forget(self, dataset: Any) -> None:
        self._forget = NamedRows(dataset, "the forget set")

    @property
    def streams(self) -> bool:
        """Whether the samples to keep come as a stream."""
        return isinstance(self._retain, RetainStream)

    def sets(self) -> dict[str, Any]:
        """Both sets, by their names in errors."""
        return {rows.name: rows.dataset for rows in (self._retain, self._forget)}

    def __len__(self) -> int:
        return len(self.forget) if self.streams else max(len(self.retain), len(self.forget))

    def __getitem__(self, pair: Pair) -> tuple[Any, Any]:
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs: Sequence[Pair]) -> list[tuple[Any, Any]]:
        """Reads the samples of a batch. `datasets` reads many rows at once several times faster than one by one."""
        retain = self._retain.__getitems__([pair[0] for pair in pairs])
        forget = self._forget.__getitems__([pair[1] for pair in pairs])
        return list(zip(retain, forget, strict=True))


class PairedSampler(Sampler[Pair]):
    """Draws the pairs of an epoch, which covers the larger set once and cycles through the smaller set.

    With few classes to keep, an epoch over the retain set would be a handful of steps and would miss most samples to
    forget.

    The order is a pure function of (`seed`, epoch). A stopped run resumes with exactly the remaining batches, and any
    number of processes sees the same global batches. The cycling set is shuffled for each pass, and passes continue
    across epochs, so that training sees each of its samples equally often.

    Args:
        num_retain (`int` or `None`):
            Size of the retain set; `None` for a stream, whose places are counted from 0 on, across epochs. An epoch
            then covers the forget set.
        num_forget (`int`):
            Size of the forget set.
        global_batch_size (`int`, *optional*, defaults to 1):
            Pairs of one batch over all processes. The start of the epoch's order fills up the last batch, so that
            every process gets the same number of samples in every step.
        seed (`int`, *optional*, defaults to 0):
            Seed of both orders.
        drop_last (`bool`, *optional*, defaults to `False`):
            Whether to drop the last incomplete batch instead of filling it up.
        covers (`"both"`, `"retain"` or `"forget"`, *optional*, defaults to `"both"`):
            `"retain"` or `"forget"`: an epoch covers this set, even if it is the smaller one.

    Raises:
        InvalidInputError: If a size is below 1, or `drop_last` drops the only batch.
    """

    def __init__(
        self,
        num_retain: int | None,
        num_forget: int,
        global_batch_size: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        covers: EpochCovers = "both",
    ):
        for name, value in (
            ("num_retain", num_retain),
            ("num_forget", num_forget),
            ("global_batch_size", global_batch_size),
        ):
            if value is not None:
                checked(name, value, Count)
        self._by_forget = num_retain is None or covers == "forget" or (covers == "both" and num_forget > num_retain)
        covered = num_forget if self._by_forget or num_retain is None else num_retain
        if drop_last and covered < global_batch_size:
            role = "forget" if self._by_forget else "keep"
            raise InvalidInputError(
                "dataloader_drop_last",
                True,
                f"False, because it leaves no batch: {covered} samples to {role}, {global_batch_size} in a batch",
                "Use a smaller batch, or keep the last one.",
            )
        self.num_retain = num_retain
        self.num_forget = num_forget
        self.seed = seed
        self.epoch = 0
        batches = covered // global_batch_size if drop_last else -(-covered // global_batch_size)
        self._length = batches * global_batch_size

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pair]:
        forget = (self.num_forget, 1)
        if self.num_retain is None:
            yield from zip(itertools.count(self.epoch * self._length), self._covered(*forget), strict=False)
            return
        retain = (self.num_retain, 0)
        if self._by_forget:
            yield from zip(self._cycling(*retain), self._covered(*forget), strict=False)
        else:
            yield from zip(self._covered(*retain), self._cycling(*forget), strict=False)

    def _covered(self, size: int, stream: int) -> Iterator[int]:
        """Indices of the covered set: the epoch's own order, whose start fills up the last batch."""
        order = self._order(size, stream, turn=self.epoch)
        for position in range(self._length):
            yield order[position % size]

    def _cycling(self, size: int, stream: int) -> Iterator[int]:
        """Indices of the cycling set: pass after pass, from the end of the previous epoch."""
        turn, offset = divmod(self.epoch * self._length, size)
        while True:
            yield from self._order(size, stream, turn)[offset:]
            turn, offset = turn + 1, 0

    def _order(self, size: int, stream: int, turn: int) -> list[int]:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(stream, turn))
        return np.random.default_rng(sequence).permutation(size).tolist()


class PairedCollator:
    """Turns pairs into one joint batch: the samples to keep first, then as many samples to forget.

    Args:
        collate (`Callable`):
            The collator for a plain list of samples. It gets the retain half, then the forget half.
        forget_classes (`Iterable[int]`, *optional*):
            Ids of the classes that the task forgets. With it, labels that hold several objects each get a mask
            `forget` over their `class_labels`, because an image may hold both kinds. A mask that `collate` has made is
            left as it is.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], forget_classes: Iterable[int] | None = None):
        self.collate = collate
        self.forget_classes = None if forget_classes is None else torch.tensor(sorted(forget_classes))

    def __call__(self, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        batch = self.collate([retain for retain, _ in pairs] + [forget for _, forget in pairs])
        labels = batch.get("labels")
        if self.forget_classes is not None and isinstance(labels, list):
            batch["labels"] = [self._marked(label, self.forget_classes) for label in labels]
        return batch

    def _marked(self, label: Any, forget_classes: torch.Tensor) -> Any:
        if not isinstance(label, Mapping) or "class_labels" not in label or "forget" in label:
            return label
        return {**label, "forget": torch.isin(label["class_labels"], forget_classes)}


class AgreeingLabels:
    """A collator that refuses batches with other labels than the stored ones.

    The stored label column, or the rows of datasets without one, decide which rows are forgotten, replayed and scored.
    The model learns the labels of the batch. If the two differ, the model forgets a class that was not requested.

    Args:
        collate (`Callable`):
            The collator. It gets the rows of [`NamedRows`].
        label_column (`str`):
            Column of the labels, or of annotated boxes.

    Raises:
        InvalidInputError: In a call, if the labels differ. The error names row and column. Labels that are not class
            ids are not checked, nor are batches with more or fewer labels than rows.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], label_column: str):
        self.collate = collate
        self.label_column = label_column

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collate(list(rows))
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if labels is not None and len(labels) == len(rows):
            self._compare(rows, labels)
        return batch

    def _compare(self, rows: Sequence[Any], labels: Any) -> None:
        if isinstance(labels, torch.Tensor):
            if labels.ndim == 1 and not labels.is_floating_point():
                given = [{label} for label in labels.tolist()]
                _refuse_other_classes(rows, _chosen_by(rows, self.label_column), given, self.label_column)
        elif all(isinstance(label, Mapping) and "class_labels" in label for label in labels):
            chosen = _chosen_by(rows, self.label_column)
            if all(classes is not None for classes in chosen):
                # A transform may put objects of several images into one.
                together = set().union(*(classes or () for classes in chosen))
                given = [set(label["class_labels"].tolist()) for label in labels]
                _refuse_other_classes(rows, [together] * len(rows), given, self.label_column)


def check_given_labels(datasets: Mapping[str, Any], label_column: str, collate: Any) -> None:
    """Checks, before any work, that a transform keeps the stored labels of some rows of several classes.

    At most 32 rows of each dataset are read, and none without a transform. [`AgreeingLabels`] checks all other rows.

    Args:
        datasets (`Mapping`):
            Map-style datasets by their names in errors.
        label_column (`str`):
            Column of the labels, or of annotated boxes.
        collate (`Callable`):
            The collator. Annotated boxes are checked if it is a [`DetectionCollator`].

    Raises:
        InvalidInputError: If a label differs. The error names row and column.
    """
    for name, dataset in datasets.items():
        _check_some_rows(dataset, label_column, name, collate)


def _check_some_rows(dataset: Any, label_column: str, name: str, collate: Any) -> None:
    if not isinstance(dataset, Dataset) or not _may_differ(dataset, label_column):
        return
    rows = NamedRows(dataset, name)
    if is_object_column(dataset, label_column):
        if isinstance(collate, DetectionCollator):
            for index in _spread(np.arange(len(dataset))):
                AgreeingLabels(collate, label_column)([rows[index]])
        return
    labels, _ = read_labels(dataset, label_column)
    chosen = [rows[index] for index in _spread(np.unique(labels, return_index=True)[1])]
    given = [_own_classes(row, label_column) for row in chosen]
    _refuse_other_classes(chosen, _chosen_by(chosen, label_column), given, label_column)


def _may_differ(dataset: Dataset, label_column: str) -> bool:
    """Whether rows may have other labels than the stored ones, because of a transform or a hidden column."""
    shown = dataset.format["columns"]
    return label_column in dataset.column_names and (dataset.format["type"] == "custom" or label_column not in shown)


def _spread(indices: np.ndarray) -> list[int]:
    """At most 32 of the indices, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), _CHECKED_ROWS)).astype(int)
    return [int(index) for index in indices[places]]


def _refuse_other_classes(
    rows: Sequence[Any], chosen: Sequence[set[int] | None], given: Sequence[set[int] | None], column: str
) -> None:
    """Refuses rows whose given classes are not among those that they were chosen by; `None` is unknown."""
    for number, (row, stored, found) in enumerate(zip(rows, chosen, given, strict=True)):
        if stored is not None and found is not None and not found <= stored:
            expected = f"{_one_or_list(stored)}, the stored label, which decides what is forgotten or kept"
            name = f"the label given of {cell_name(row, column, number)}"
            raise InvalidInputError(name, _one_or_list(found), expected, _KEEP_LABELS)


def _one_or_list(classes: set[int]) -> int | list[int]:
    return next(iter(classes)) if len(classes) == 1 else sorted(classes)


def _chosen_by(rows: Sequence[Any], column: str) -> list[set[int] | None]:
    """The classes that each row was chosen by; `None` if they are unknown."""
    found = [_own_classes(row, column) for row in rows]
    sources: dict[int, tuple[NamedRows, list[int]]] = {}  # by dataset: the places of its rows in the batch
    for place, row in enumerate(rows):
        origin = getattr(row, "origin", None)
        if origin is not None and isinstance(origin[0].dataset, Dataset):
            sources.setdefault(id(origin[0]), (origin[0], []))[1].append(place)
    for source, places in sources.values():
        if not _may_differ(source.dataset, column):
            continue
        cells = source.stored(column, [rows[place].origin[1] for place in places])
        for place, cell in zip(places, cells, strict=True):
            found[place] = _classes(cell)
    return found


def _own_classes(row: Any, column: str) -> set[int] | None:
    name = label_name(row, column) if isinstance(row, Mapping) else None
    return None if name is None else _classes(row[name])


def _classes(cell: Any) -> set[int] | None:
    """The class ids in a cell, a label or annotated boxes in either layout; `None` if they are unknown."""
    if isinstance(cell, (list, tuple)):
        parts = [_classes(item) for item in cell]
        return None if any(part is None for part in parts) else set().union(*(part or () for part in parts))
    if isinstance(cell, Mapping):
        name = next((name for name in CATEGORY_KEYS if name in cell), None)
        return None if name is None else _classes(cell[name])
    array = np.asarray(cell)
    return set(array.ravel().tolist()) if np.issubdtype(array.dtype, np.integer) else None
