"""Paired batches: every training batch holds as many samples to keep as samples to forget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import datasets
import torch
from PIL.Image import Image as Picture
from torch.utils.data import Dataset, Sampler
from transformers import BaseImageProcessor, default_data_collator

from .box_collation import DetectionCollator
from .box_columns import is_object_column

Pair = tuple[int, int]
EpochCovers = Literal["both", "retain"]


class PairedDataset(Dataset):
    """
    Samples addressed by a pair of indices: one into the retain set, one into the forget set.

    Args:
        retain (map-style dataset): D_r, what stays.
        forget (map-style dataset): D_f, what goes.

    Raises:
        ValueError: if one of them is empty or has no length.
    """

    def __init__(self, retain: Any, forget: Any):
        for name, dataset in (("retain", retain), ("forget", forget)):
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise ValueError(
                    f"the {name} set must be a map-style dataset with a length, got {type(dataset).__name__}. A "
                    "stream can be collected with datasets.Dataset.from_generator(...)."
                )
            if len(dataset) == 0:
                raise ValueError(f"the {name} set is empty; a paired batch needs at least one sample of each.")
        self.retain = retain
        self.forget = forget

    def __len__(self) -> int:
        return max(len(self.retain), len(self.forget))

    def __getitem__(self, pair: Pair) -> tuple[Any, Any]:
        return self.retain[pair[0]], self.forget[pair[1]]

    def __getitems__(self, pairs: Sequence[Pair]) -> list[tuple[Any, Any]]:
        """The samples of a whole batch; `datasets` reads many rows in one go several times faster than one by one."""
        retain = rows_of(self.retain, [pair[0] for pair in pairs])
        forget = rows_of(self.forget, [pair[1] for pair in pairs])
        return list(zip(retain, forget, strict=True))


def rows_of(dataset: Any, indices: list[int]) -> list[Any]:
    """Rows of a map-style dataset, in one go where it can."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


class PairedSampler(Sampler[Pair]):
    """
    The order of the pairs: an epoch runs once over the larger set, the smaller one cycles as often as needed.

    Where few classes stay, an epoch over what is to keep would be a handful of steps, and most samples to forget would
    not be seen in it.

    The order is a pure function of (`seed`, epoch), so that a run that was stopped can go on with exactly the batches
    that were left, and so that one process and many see the same global batches. The set that cycles is shuffled anew
    for every pass over it, and passes run on across epochs, so that each of its samples is seen equally often.

    Args:
        num_retain (`int`): size of the retain set.
        num_forget (`int`): size of the forget set.
        global_batch_size (`int`, *optional*, defaults to 1):
            Pairs of one batch over all processes. An epoch is filled up to a whole number of batches from the start
            of its own order, so that every process gets as many samples in every step.
        seed (`int`, *optional*, defaults to 0): seed of both orders.
        drop_last (`bool`, *optional*, defaults to `False`):
            Cut the last incomplete batch off instead of filling it up.
        covers (`"both"` or `"retain"`, *optional*, defaults to `"both"`):
            `"retain"`: an epoch runs over the retain set, also where it is the smaller one.

    Raises:
        ValueError: if a size is < 1, or if `drop_last` leaves no batch.
    """

    def __init__(
        self,
        num_retain: int,
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
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self._by_forget = covers == "both" and num_forget > num_retain
        covered = num_forget if self._by_forget else num_retain
        if drop_last and covered < global_batch_size:
            role = "forget" if self._by_forget else "keep"
            raise ValueError(
                f"`dataloader_drop_last` leaves no batch: {covered} samples to {role}, {global_batch_size} in a "
                "global batch. Use a smaller batch or do not drop the last one."
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
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pair]:
        retain, forget = (self.num_retain, 0), (self.num_forget, 1)
        if self._by_forget:
            yield from zip(self._cycling(*retain), self._covered(*forget), strict=False)
        else:
            yield from zip(self._covered(*retain), self._cycling(*forget), strict=False)

    def _covered(self, size: int, stream: int) -> Iterator[int]:
        """The set that an epoch runs over: the epoch's own order, from whose start the last batch is filled up."""
        order = self._order(size, stream, turn=self.epoch)
        for position in range(self._length):
            yield order[position % size]

    def _cycling(self, size: int, stream: int) -> Iterator[int]:
        """The other one: pass after pass, from where the epoch before stopped."""
        turn, offset = divmod(self.epoch * self._length, size)
        while True:
            yield from self._order(size, stream, turn)[offset:]
            turn, offset = turn + 1, 0

    def _order(self, size: int, stream: int, turn: int) -> list[int]:
        # One 63-bit seed from (seed, stream, turn); the odd multipliers keep neighbouring seeds and turns apart.
        mixed = (self.seed * 0x9E3779B97F4A7C15 + turn * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % 2**63
        return torch.randperm(size, generator=torch.Generator().manual_seed(mixed)).tolist()


class PairedCollator:
    """
    Turns pairs into one joint batch: the samples to keep first, then as many samples to forget.

    Args:
        collate (`Callable`): the collator for a plain list of samples; it sees the retain half, then the forget half.
        forget_classes (`Iterable[int]`, *optional*): ids of the classes that the task forgets. With it, labels that
            hold several objects each get a mask `forget` over their `class_labels`, for an image may hold both kinds.
            One that `collate` has made is left as it is.
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


class ImageCollator:
    """
    Collates rows with an image into `pixel_values` and `labels`.

    Images become RGB, or grey for a processor of one channel (told by the length of its `image_mean`).

    Args:
        processor (`transformers.BaseImageProcessor`): the model's image processor.
        image_column (`str`, *optional*, defaults to `"image"`): column that holds PIL images or arrays.
        label_column (`str`, *optional*, defaults to `"label"`): column that holds integer labels.

    Returns:
        `dict`: `pixel_values`, float, shape `(batch, channels, height, width)`, and `labels`, int64, shape `(batch,)`.
    """

    def __init__(self, processor: Any, image_column: str = "image", label_column: str = "label"):
        self.processor = processor
        # Grey or palette images: the processor takes as many channels as it has means, three where it has none.
        mean = getattr(processor, "image_mean", None)
        channels = len(mean) if isinstance(mean, Sequence) else 3
        self.mode = {1: "L", 3: "RGB"}.get(channels)
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.image_column not in rows[0]:
            raise ValueError(
                f"a row holds {sorted(rows[0])} and no {self.image_column!r}. Rename the column of the images, or "
                "give a `data_collator` that reads what is there."
            )
        images = [row[self.image_column] for row in rows]
        if self.mode is not None:
            images = [image.convert(self.mode) if hasattr(image, "convert") else image for image in images]
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "labels": torch.tensor([int(row[self.label_column]) for row in rows])}


class TensorCollator:
    """
    Collates rows of tensors, arrays and numbers as [`transformers.default_data_collator`] does, labels as `labels`.

    Other columns called `label`, `labels` or `label_ids` are left out: the collator would take them for the labels.

    Args:
        label_column (`str`, *optional*, defaults to `"label"`): column that holds integer labels.

    Raises:
        ValueError: when called, if a column holds pictures.
    """

    def __init__(self, label_column: str = "label"):
        self.label_column = label_column

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.refuse_pictures(rows[0])
        return default_data_collator([self._renamed(row) for row in rows])

    def refuse_pictures(self, row: Mapping[str, Any]) -> None:
        """Refuses a row of which a column that would be collated holds a picture.

        Raises:
            ValueError: if one does.
        """
        for name, value in self._renamed(row).items():
            if isinstance(value, Picture):
                raise ValueError(
                    f"the column {name!r} holds pictures, which the model's image processor has to make tensors of. "
                    "Give it as `processing_class`, AutoImageProcessor.from_pretrained(...), or give a "
                    "`data_collator` of your own, or a dataset whose transform puts tensors in their place: "
                    "dataset.with_transform(...)."
                )

    def _renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        column = self.label_column
        others = {"label", "labels", "label_ids"} - {column}
        return {"label" if name == column else name: value for name, value in row.items() if name not in others}


def default_collator(
    processing_class: Any = None, label_column: str = "label", dataset: Any = None
) -> ImageCollator | TensorCollator | DetectionCollator:
    """[`ImageCollator`] where there is an image processor, alone or as part of a processor like CLIP's,
    [`DetectionCollator`] where the labels of `dataset` are annotated boxes, else [`TensorCollator`].

    Where the pictures of a `datasets.Dataset` would meet a [`TensorCollator`], its first row is read: a format or a
    transform may have made tensors of them.

    Raises:
        ValueError: if there are boxes or pictures and no image processor to prepare them.
    """
    processor = getattr(processing_class, "image_processor", processing_class)
    has_processor = isinstance(processor, BaseImageProcessor)
    if is_object_column(dataset, label_column):
        if not has_processor:
            raise ValueError(
                f"{label_column!r} holds annotated boxes, which the model's image processor has to prepare, and "
                f"`processing_class` is {type(processing_class).__name__}. Give AutoImageProcessor.from_pretrained"
                "(...), or a `data_collator` of your own."
            )
        return DetectionCollator(processor, objects_column=label_column)
    if has_processor:
        return ImageCollator(processor, label_column=label_column)
    collator = TensorCollator(label_column)
    if _has_images(dataset):
        collator.refuse_pictures(dataset[0])
    return collator


def _has_images(dataset: Any) -> bool:
    if not isinstance(dataset, datasets.Dataset) or len(dataset) == 0:
        return False
    return any(isinstance(feature, datasets.Image) for feature in dataset.features.values())
