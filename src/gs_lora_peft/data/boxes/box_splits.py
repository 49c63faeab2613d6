"""Splits of datasets with annotated boxes, where an image holds objects of several categories."""

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
    draw,
    require_rows,
    rounded_share,
    row_keys,
    small_fraction,
)
from .annotations import checked_annotations, read_annotations
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
    """Splits a dataset of annotated boxes for one forgetting task.

    An image is in the forget part if it holds an object to forget, and in the retain part if it holds one to keep.
    Mixed images are in both. Images of both parts have the annotations of all categories to forget and to keep. The
    half of a batch and the annotation's category decide how training uses an annotation. Annotations of all other
    categories (old, missing, or not named) are removed. The model does not see them, and their objects count as
    background.

    Images are drawn for each category in one random order of all images, which depends only on `seed`. A category
    keeps its images from task to task, a smaller draw is part of a larger one, and categories share images where
    possible. A drawn image keeps all its annotations, so that a category may get more images than were drawn for it.
    Crowds (`iscrowd`) do not put an image into a part.

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
            The categories to replay.
        replay_ratio (`float`, *optional*, defaults to 1.0):
            The share in (0, 1] of each retained category's images in D_r, rounded half up, at least one.
        shots (`int`, *optional*):
            Number of images to draw for every category to forget or to retain.
        seed (`int`, *optional*, defaults to 1337):
            Seed of the draw by `replay_ratio` and `shots`.

    Returns:
        [`ForgettingSplit`]: The four parts and their classes. The `objects_column` of each part is a struct of lists
        with `bbox`, `category` and every other field. `old` and `missing` hold the images with objects of these
        categories, and only their annotations. No part has images without annotations.

    Raises:
        InvalidBoxError: If a box does not have an area, is not finite or lies outside its image.
        UnknownClassError: If the annotations do not have a name or id.
        InvalidInputError: If no category is to be forgotten or retained; if a category has two roles; if a category
            to forget or to retain does not have images, or fewer than `shots`; if the dataset or the column cannot be
            split; or if a setting is out of range, or both `replay_ratio` and `shots` are set.

    Example:
        ```py
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
    require_rows(roles, count_of, shots)

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
    """Splits a validation part off the training images, with about the same share of every category.

    Args:
        dataset (`datasets.Dataset`):
            One row for each image, in any layout that [`prepare_boxes`] reads.
        objects_column (`str`, *optional*, defaults to `"objects"`):
            The column of annotations.
        fraction (`float`, *optional*, defaults to 0.1):
            The share in (0, 1) of each category's images to draw, rounded half up. Categories share images where
            possible. At least one image of each category stays in the training part.
        seed (`int`, *optional*, defaults to 1337):
            Seed of the draw.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The training part and the validation part, both in the order of
        the dataset. Images without annotations are in the training part.

    Raises:
        InvalidBoxError: If a box does not have an area, is not finite or lies outside its image.
        InvalidInputError: If the fraction or the seed is out of range, the column cannot be used, or every category
            has too few images.
    """
    check_fraction(fraction, seed)
    annotations = checked_annotations(dataset, objects_column)
    rows, _, codes = _images_of_classes(annotations.rows, annotations.categories, ~annotations.crowd)
    counts = np.bincount(codes)
    keys = row_keys(len(dataset), seed)
    drawn = draw(codes, np.minimum(counts - 1, rounded_share(counts, fraction)), keys[rows])
    # An image drawn for one category may be the last one of another category.
    last = np.full(len(counts), -1)
    order = np.argsort(keys[rows])
    last[codes[order]] = rows[order]
    taken = np.setdiff1d(rows[drawn], last)
    if not taken.size:
        raise small_fraction(fraction, counts.max(initial=0), "image")
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), taken)), dataset.select(taken)


def remove_box_classes(dataset: Dataset, classes: Sequence[int], objects_column: str = "objects") -> Dataset:
    """[`remove_classes`] for datasets with annotated boxes: all images, without the annotations of some categories."""
    annotations = read_annotations(dataset, objects_column)
    kept = ~np.isin(annotations.column.fields["category"].to_numpy(), classes)
    return replaced(dataset, objects_column, annotations.column.filtered(kept))


def _images_of_classes(
    rows: np.ndarray, categories: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of an image and a category, each pair once: their rows, all categories, and the index of each pair's."""
    pairs = np.unique(np.stack([categories[counted], rows[counted]], axis=1), axis=0)
    classes, codes = np.unique(pairs[:, 0], return_inverse=True)
    return pairs[:, 1], classes, codes
