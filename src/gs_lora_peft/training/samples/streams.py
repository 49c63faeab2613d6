"""Samples to keep that come as a stream: what can be done with them, and what is refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from ...data import PairedDataset, RetainStream, check_names, is_object_column, is_stream, label_names
from ...errors import InvalidInputError
from ...objectives import head_size
from ..arguments import GSLoraTrainingArguments

# Rows of a stream that stand for all of them where something is measured before the training: scales of states, and
# what groups gain.
SAMPLED_ROWS = 1024

_COLLECT = "Collect the stream, or a part of it, with datasets.Dataset.from_generator(...)."


def opened(retain_dataset: Any, label_column: str, args: GSLoraTrainingArguments) -> Any:
    """Returns the retain set as pairs can be drawn from it: a stream as [`RetainStream`], anything else as it is.

    Args:
        retain_dataset (map-style or iterable dataset):
            D_r, the samples to keep.
        label_column (`str`):
            Column of the integer labels.
        args ([`GSLoraTrainingArguments`]):
            The arguments of the training.

    Raises:
        InvalidInputError: If it is a stream, and an option needs all samples at once or their number.
    """
    if not is_stream(retain_dataset):
        return retain_dataset
    stream = RetainStream(retain_dataset, label_column)
    if is_object_column(stream, label_column):
        expected = f"a map-style dataset with annotated boxes, as {label_column!r} holds them"
        raise InvalidInputError("retain_dataset", type(retain_dataset).__name__, expected, _COLLECT)
    _check_options(args)
    if args.dataloader_num_workers and not hasattr(retain_dataset, "iter"):
        raise InvalidInputError(
            "dataloader_num_workers",
            args.dataloader_num_workers,
            "0 with an IterableDataset of torch, which may give each worker other rows",
            "Leave it at 0, or make it a datasets.IterableDataset.from_generator(...).",
        )
    return stream


def _check_options(args: GSLoraTrainingArguments) -> None:
    if args.epoch_covers == "retain" or (args.epoch_covers == "both" and args.max_steps <= 0):
        raise InvalidInputError(
            "epoch_covers",
            args.epoch_covers,
            "'forget' with a stream to keep, whose length is unknown",
            "Set epoch_covers='forget', so that an epoch is one pass over the forget set; or `max_steps`.",
        )
    for name, why in (
        ("validation_fraction", "no part of a stream can be held out: give `eval_dataset`"),
        ("prototype_forget_weight", "a prototype is the mean over all samples of a class"),
        ("prototype_retain_weight", "a prototype is the mean over all samples of a class"),
    ):
        if getattr(args, name) > 0:
            expected = f"0 with a stream to keep; {why}"
            raise InvalidInputError(name, getattr(args, name), expected, f"Leave it out. {_COLLECT}")


def classes_to_keep(stream: RetainStream, model: nn.Module, others: Collection[int]) -> list[int]:
    """Returns the classes that a stream is to keep, all of the head but some, and tells the stream.

    Args:
        stream ([`RetainStream`]):
            The stream.
        model (`torch.nn.Module`):
            The model. Its names of the classes must be those of the stream.
        others (`Collection[int]`):
            Ids of the classes to forget, of those forgotten before and of missing ones: their rows are left out.

    Raises:
        InvalidInputError: If the model does not tell the number of its classes, none is left to keep, the stream has
            no label column, or it gives a class another name than the model.
    """
    size = head_size(model)
    if size is None:
        expected = "a map-style dataset, because the model does not tell the number of its classes"
        fix = f"Set model.config.num_labels. {_COLLECT}"
        raise InvalidInputError("retain_dataset", type(stream.stream).__name__, expected, fix)
    if stream.features is not None:
        check_names(label_names(stream.stream, stream.label_column), model, f"{stream.label_column!r}")
    stream.drops = frozenset(others)
    stream.keeps = frozenset(range(size)) - stream.drops
    if not stream.keeps:
        expected = f"fewer than all {size} classes of the head"
        fix = "Forget fewer classes, or name fewer in `old_classes` and `missing_classes`."
        raise InvalidInputError("forget_classes", sorted(others), expected, fix)
    return sorted(stream.keeps)


def sampled(pairs: PairedDataset) -> Sequence[Any]:
    """Returns the retain set and the forget set for a pass before the training: of a stream, its first rows to keep.

    Args:
        pairs ([`PairedDataset`]):
            Both sets.
    """
    retain = pairs.retain
    return [retain.first(SAMPLED_ROWS) if isinstance(retain, RetainStream) else retain, pairs.forget]
