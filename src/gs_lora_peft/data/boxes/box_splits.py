"""Which images are to be forgotten and which are replayed, where an image holds objects of several categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..row_splits import (
    ForgettingSplit,
    assign_roles,
    check_fraction,
    check_sampling,
    check_seed,
    draw,
    require_rows,
    rounded_share,
    row_keys,
    small_fraction,
)
from .annotations import checked_annotations
from .columns import replaced


def split_boxes(
    dataset: Dataset,
    forget: Sequence[str | int],
    *,
    objects_column: str = "objects",
    old: Sequence[str | int] = (),
    missing: Sequence[str | int] = (),
    retain: Sequence[str | int] | None = None,
    replay_ratio: float = 1.0,
    shots: int | None = None,
    seed: int = 1337,
) -> ForgettingSplit:
    """Takes a dataset of annotated boxes apart for one forgetting task.

    An image goes into the forget part where it holds an object to forget, and into the retain part where it holds one
    to keep: mixed images are in both. The annotations of these two parts are those of all categories to forget and to
    keep now, in both: which half of a batch an image is in, and an annotation's category, say what it is for. The
    annotations of all other categories (old, missing, or named nowhere) are removed from them: nothing of these is
    shown to the model, which also means that their objects count as background there.

    Images are drawn for each category in one random order of all images, which depends on `seed` alone: a category
    keeps its images from task to task, a smaller draw is part of a larger one, and categories share images where they
    can. An image that was drawn keeps all its annotations, so that a category may get more images than were drawn for
    it. Crowds (`iscrowd`) put no image into a part.

    Args:
        dataset (`datasets.Dataset`):
            One row for each image, in any layout that [`prepare_boxes`] reads.
        forget (`Sequence[str | int]`):
            The categories to forget, by name or id.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            The column of annotations.
        old (`Sequence[str | int]`, *optional*, defaults to none):
            Categories that earlier tasks forgot. They need not have images.
        missing (`Sequence[str | int]`, *optional*, defaults to none):
            Categories to keep although none of their objects is shown. They need not have images.
        retain (`Sequence[str | int]`, *optional*, defaults to every other category that has images):
            The categories to keep and to show.
        replay_ratio (`float`, *optional*, defaults to 1.0):
            The share in (0, 1] of each retained category's images that goes into D_r, rounded half up, one at least.
        shots (`int`, *optional*):
            Draw so many images for every category to forget and for every one to retain.
        seed (`int`, *optional*, defaults to 1337):
            Decides which images `replay_ratio` and `shots` draw.

    Returns:
        [`ForgettingSplit`]: The four parts and their classes; `objects_column` of each is a struct of lists with.
        `bbox`, `category` and every other field there was. `old` and `missing` hold the images with objects of these
        categories, and only their annotations. Images without annotations are in no part.

    Raises:
        InvalidBoxError: A box has no area, is not finite or lies outside its image.
        UnknownClassError: A name or id that the annotations do not have.
        ValueError: No category to forget, or none left to retain; a category with two roles; a category to forget or
            to retain without images, or with fewer than `shots`; a dataset or column that cannot be split; settings
            out of range, or `replay_ratio` together with `shots`.

    Example:
    ```python
    >>> split = split_boxes(dataset, forget=["WBC"], replay_ratio=0.5)
    >>> len(split.forget), len(split.retain)
    (290, 143)
    ```
    """
    check_sampling(replay_ratio, shots, seed)
    annotations = checked_annotations(dataset, objects_column)
    rows, classes, codes = _images_of_classes(annotations.rows, annotations.categories, ~annotations.crowd)
    counts = np.bincount(codes, minlength=len(classes))
    count_of = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    requested: dict[str, Any] = {"forget": forget, "old": old, "missing": missing, "retain": retain}
    roles, request = assign_roles(requested, names=annotations.names, present=list(count_of))
    require_rows(roles, count_of, shots, annotations.names)

    quota = counts.copy()
    for role, ids in (("forget", roles.forget), ("retain", roles.retain)):
        members = np.isin(classes, ids)
        if shots is not None:
            quota[members] = shots
        elif role == "retain":
            quota[members] = np.maximum(1, rounded_share(counts[members], replay_ratio))
    drawn = draw(codes, quota, row_keys(len(dataset), seed)[rows])

    shown = [*roles.forget, *roles.retain]
    stored = annotations.column.fields["category"].to_numpy()
    parts = {}
    for role, ids in roles.as_dict().items():
        kept = np.isin(stored, ids if role in ("old", "missing") else shown)
        chosen = np.unique(rows[drawn & np.isin(classes, ids)[codes]])
        parts[role] = replaced(dataset, objects_column, annotations.column.filtered(kept), chosen)
    return ForgettingSplit(**parts, roles=roles, forget_classes=request)


def train_validation_boxes(
    dataset: Dataset, objects_column: str = "objects", fraction: float = 0.1, seed: int = 1337
) -> tuple[Dataset, Dataset]:
    """Takes a validation part out of training images, about the same share of every category.

    Args:
        dataset (`datasets.Dataset`):
            One row for each image, in any layout that [`prepare_boxes`] reads.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            The column of annotations.
        fraction (`float`, *optional*, defaults to 0.1):
            The share in (0, 1) of each category's images that is drawn, rounded half up. Categories share images where
            they can. One image of each category stays in the training part whatever the share.
        seed (`int`, *optional*, defaults to 1337):
            Decides which images are taken.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The training part and the validation part, both in the order of.
        the dataset. Images without annotations are in the training part.

    Raises:
        InvalidBoxError: A box has no area, is not finite or lies outside its image.
        ValueError: The fraction or the seed is out of range, the column cannot be used, or every category has too few
            images to give one.
    """
    _check_fraction(fraction, seed)
    annotations = checked_annotations(dataset, objects_column)
    rows, _, codes = _images_of_classes(annotations.rows, annotations.categories, ~annotations.crowd)
    counts = np.bincount(codes)
    keys = row_keys(len(dataset), seed)
    drawn = draw(codes, np.minimum(counts - 1, rounded_share(counts, fraction)), keys[rows])
    # Drawn for another category, an image may be the last one of this.
    last = np.full(len(counts), -1)
    order = np.argsort(keys[rows])
    last[codes[order]] = rows[order]
    taken = np.setdiff1d(rows[drawn], last)
    if not taken.size:
        raise small_fraction(fraction, counts.max(initial=0), "image")
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), taken)), dataset.select(taken)


def _images_of_classes(
    rows: np.ndarray, categories: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every image of every category once: its row, the categories there are, and which of them it is."""
    pairs = np.unique(np.stack([categories[counted], rows[counted]], axis=1), axis=0)
    classes, codes = np.unique(pairs[:, 0], return_inverse=True)
    return pairs[:, 1], classes, codes


def _check_fraction(fraction: Any, seed: Any) -> None:
    check_fraction(fraction)
    check_seed(seed)
