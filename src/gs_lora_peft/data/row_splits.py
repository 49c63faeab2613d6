"""Splits of datasets with one class for each row, and the checks and draws that all splits share."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from datasets import Dataset
from pydantic import Field

from ..checking import Count, NotNegativeWhole, Number, Share, checked
from ..errors import InvalidInputError
from ..roles import ClassRoles, SharedClassesError
from .classes import read_labels, resolve_classes

_FRACTION = Annotated[Number, Field(gt=0, lt=1, description="a number between 0 and 1")]

_SHOWN = 20  # classes listed in an error


@dataclass(frozen=True)
class ForgettingSplit:
    """A dataset split for one forgetting task. Each part keeps the order, features and format of the dataset.

    Args:
        forget (`datasets.Dataset`):
            Rows of the classes to forget, the paper's D_f.
        retain (`datasets.Dataset`):
            Replayed rows of the classes to keep, the paper's D_r.
        old (`datasets.Dataset`):
            Rows of classes that earlier tasks forgot; only to score Acc_o.
        missing (`datasets.Dataset`):
            Rows of classes to keep that are not replayed; only to score Acc_m.
        roles ([`ClassRoles`]):
            Ids behind each part. Classes of `old` and `missing` may have no rows.
        forget_classes (`list[int]`):
            Ids behind `forget`, in the order of the request.

    Attributes:
        retain_classes (`list[int]`):
            Ids behind `retain`, sorted.
        old_classes (`list[int]`):
            Ids behind `old`, sorted.
        missing_classes (`list[int]`):
            Ids behind `missing`, sorted.
    """

    forget: Dataset
    retain: Dataset
    old: Dataset
    missing: Dataset
    roles: ClassRoles
    forget_classes: list[int]

    @property
    def retain_classes(self) -> list[int]:
        return list(self.roles.retain)

    @property
    def old_classes(self) -> list[int]:
        return list(self.roles.old)

    @property
    def missing_classes(self) -> list[int]:
        return list(self.roles.missing)


def split_rows(
    dataset: Dataset,
    forget: Sequence[str | int],
    *,
    label_column: str = "label",
    old: Sequence[str | int] = (),
    missing: Sequence[str | int] = (),
    retain: Sequence[str | int] | None = None,
    replay_ratio: float = 1.0,
    shots: int | None = None,
    seed: int = 1337,
) -> ForgettingSplit:
    """[`split_dataset`] for datasets with one class for each row."""
    check_sampling(replay_ratio, shots, seed)
    labels, names = read_labels(dataset, label_column)
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    count_of = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    requested: dict[str, Any] = {"forget": forget, "old": old, "missing": missing, "retain": retain}
    roles, request = assign_roles(requested, names=names, present=list(count_of))
    require_rows(roles, count_of, shots)

    role_of_code = np.full(len(classes), -1)
    quota = counts.copy()
    for number, (role, ids) in enumerate(roles.as_dict().items()):
        members = np.isin(classes, ids)
        role_of_code[members] = number
        if shots is not None and role in ("forget", "retain"):
            quota[members] = shots
        elif role == "retain":
            quota[members] = np.maximum(1, rounded_share(counts[members], replay_ratio))
    drawn = draw(codes, quota, row_keys(len(codes), seed))
    parts = {
        role: dataset.select(np.flatnonzero(drawn & (role_of_code[codes] == number)))
        for number, role in enumerate(roles.as_dict())
    }
    return ForgettingSplit(**parts, roles=roles, forget_classes=request)


def train_validation_rows(
    dataset: Dataset, label_column: str = "label", fraction: float = 0.1, seed: int = 1337
) -> tuple[Dataset, Dataset]:
    """[`train_validation_split`] for datasets with one class for each row."""
    check_fraction(fraction, seed)
    labels, _ = read_labels(dataset, label_column)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = np.minimum(counts - 1, rounded_share(counts, fraction))
    if not quota.any():
        raise small_fraction(fraction, counts.max(initial=0), "row")
    taken = draw(codes, quota, row_keys(len(codes), seed))
    return dataset.select(np.flatnonzero(~taken)), dataset.select(np.flatnonzero(taken))


def check_sampling(replay_ratio: Any, shots: Any, seed: Any) -> None:
    """Checks the settings of the draw.

    Raises:
        InvalidInputError: If one is out of range, or both `shots` and `replay_ratio` are set.
    """
    checked("replay_ratio", replay_ratio, Share, fix="Take for instance 0.1.")
    if shots is not None:
        checked("shots", shots, Count, fix="Leave it out to take every row.")
        if replay_ratio != 1:
            expected = f"None with replay_ratio={replay_ratio}, because both set how much is replayed"
            raise InvalidInputError("shots", shots, expected, "Leave one out.")
    _check_seed(seed)


def check_fraction(fraction: Any, seed: Any) -> None:
    """Checks the settings of a validation part.

    Raises:
        InvalidInputError: If one is out of range.
    """
    checked("fraction", fraction, _FRACTION, fix="Take for instance 0.1.")
    _check_seed(seed)


def _check_seed(seed: Any) -> None:
    checked("seed", seed, NotNegativeWhole, fix="Take for instance 1337.")


def small_fraction(fraction: float, largest: int, unit: str) -> InvalidInputError:
    """The error for a fraction that takes nothing, if the largest class has `largest` rows or images."""
    return InvalidInputError(
        "fraction",
        fraction,
        f"a fraction that takes one {unit} of a class or more and leaves one; the largest class has {largest} {unit}s",
        f"Raise it, or pass more {unit}s.",
    )


def assign_roles(
    requested: dict[str, Any], *, names: list[str] | None, present: list[int]
) -> tuple[ClassRoles, list[int]]:
    """The roles of the classes, and the classes to forget in the order of the request."""
    ids: dict[str, list[int]] = {}
    for role, classes in requested.items():
        if role == "retain" and classes is None:
            continue
        # No class to forget is a mistake, no old or missing class is the usual case.
        if role in ("old", "missing") and isinstance(classes, Sized) and len(classes) == 0:
            ids[role] = []
        else:
            ids[role] = resolve_classes(classes, names=names, name=role)
    try:
        return ClassRoles.of(**ids, present=present), ids["forget"]
    except SharedClassesError as error:
        raise _two_roles(*error.roles, error.value) from None


def _two_roles(first: str, second: str, both: list[int]) -> InvalidInputError:
    shown = _show(both)
    if (first, second) == ("forget", "old"):
        fix = f"Leave {shown} out of the request."
        return InvalidInputError("forget", both, "classes that are not already forgotten, as those in `old`", fix)
    if (first, second) == ("forget", "missing"):
        fix = f"Take {shown} out of `missing`, or out of the request."
        return InvalidInputError("forget", both, "classes whose data may be used, unlike those in `missing`", fix)
    expected = f"one role for each class, and `{first}` names these too"
    return InvalidInputError(second, both, expected, f"Take {shown} out of one.")


def require_rows(roles: ClassRoles, count_of: dict[int, int], shots: int | None) -> None:
    """Refuses classes to forget or retain without rows, or with fewer than `shots`, and a task that retains none."""
    needed = shots or 1
    short = {
        role: [class_id for class_id in ids if count_of.get(class_id, 0) < needed]
        for role, ids in (("forget", roles.forget), ("retain", roles.retain))
    }
    if shots is not None and any(short.values()):
        counted = [f"{_show([i])} has {count_of.get(i, 0)}" for ids in short.values() for i in ids]
        raise InvalidInputError(
            "shots",
            shots,
            f"that many rows of every class to forget or to retain, but {', '.join(counted)}",
            "Lower shots, or name those to keep in `missing` (`missing_classes`), which leaves them out.",
        )
    for role, fix in (
        ("forget", "Pass data they are in."),
        ("retain", "Name them in `missing`, or pass their data."),
    ):
        if short[role]:
            expected = f"classes with at least one row; the data lack {_show(short[role])}"
            raise InvalidInputError(role, short[role], expected, fix)
    if not roles.retain:
        raise InvalidInputError(
            "retain",
            [],
            f"at least one class, but none of the {len(count_of)} classes of the dataset is left to retain",
            "Forget fewer classes, or pass a dataset with classes to keep.",
        )


def _show(ids: list[int]) -> str:
    return f"class {', '.join(map(str, ids[:_SHOWN]))}" + (
        f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    )


def rounded_share(counts: np.ndarray, share: float) -> np.ndarray:
    """Rounds shares half up. NumPy rounds half to even: a share of 0.5 would give 2 of 5 rows and 2 of 3."""
    return np.floor(counts * share + 0.5).astype(counts.dtype)


def row_keys(num_rows: int, seed: int) -> np.ndarray:
    """A random key in [0, 1) for each row. Rows with lower keys are drawn first."""
    return np.random.default_rng(seed).random(num_rows)


def draw(codes: np.ndarray, quota: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Draws the `quota[c]` rows of each class c with the lowest keys, so that a smaller draw is part of a larger one.

    Args:
        codes (`np.ndarray` of shape `(n,)`, int):
            Class of each row.
        quota (`np.ndarray` of shape `(num_classes,)`, int):
            Number of rows to draw from each class.
        keys (`np.ndarray` of shape `(n,)`):
            Key of each row, from [`row_keys`].

    Returns:
        `np.ndarray` of shape `(n,)`, bool: Whether the row is drawn.
    """
    order = np.lexsort((keys, codes))
    sorted_codes = codes[order]
    rank = np.arange(len(codes)) - np.searchsorted(sorted_codes, sorted_codes)
    drawn = np.zeros(len(codes), dtype=bool)
    drawn[order] = rank < quota[sorted_codes]
    return drawn
