"""The arithmetic of continual forgetting: accuracies by role of the class, the drop and the H-mean."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np


def continual_forgetting_scores(
    predictions: Any,
    references: Any,
    *,
    forget_classes: Iterable[int],
    old_classes: Iterable[int] = (),
    missing_classes: Iterable[int] = (),
    retain_classes: Iterable[int] | None = None,
    accuracy_forget_before: float | None = None,
) -> dict[str, float | int | None]:
    """Scores predictions on data of a continual forgetting task.

    Args:
        predictions (array or tensor of shape `(n,)`):
            Predicted class ids, whole numbers. An id that is not a class, like -1 for "none", is a wrong answer.
        references (array or tensor of shape `(n,)`): True class ids, from 0 up.
        forget_classes (`Iterable[int]`): Classes the task forgets. May be empty, to score a model before any task.
        old_classes (`Iterable[int]`, *optional*, defaults to none): Classes that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none): Classes kept without any replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to every class named nowhere else):
            Classes kept. Rows of classes named nowhere then count for nothing.
        accuracy_forget_before (`float`, *optional*): Acc_f of the model before the task, in [0, 1].

    Returns:
        `dict[str, float | int | None]`, accuracies as fractions from 0 to 1:

        - `acc_retain` (Acc_r), `acc_forget` (Acc_f), `acc_old` (Acc_o), `acc_missing` (Acc_m): the share of right
          answers on the rows of the role. `None` where there is no such row: unlike NaN it equals itself, is legal
          JSON and cannot slip through a comparison or a mean unseen.
        - `drop` (Drop): Acc_f before − Acc_f after, from -1 to 1; `None` where either is not known.
        - `h_mean` (H): see [`h_mean`]; `None` where Acc_r or Drop is.
        - `n_retain`, `n_forget`, `n_old`, `n_missing`: the numbers of rows.

    Raises:
        ValueError: Predictions and references differ in length, are not one-dimensional or not whole numbers; a
            reference is negative; a class has two roles; or an accuracy is not a fraction.

    Example:

    ```python
    >>> scores = continual_forgetting_scores([1, 1, 2], [0, 1, 2], forget_classes=[0], accuracy_forget_before=1.0)
    >>> scores["acc_forget"], scores["acc_retain"], scores["h_mean"]
    (0.0, 1.0, 1.0)
    ```
    """
    predictions, references = answers(predictions, references)
    before = fraction(accuracy_forget_before, "accuracy_forget_before")
    roles = class_roles(forget=forget_classes, old=old_classes, missing=missing_classes, retain=retain_classes)

    right = predictions == references
    rows = {role: np.isin(references, sorted(ids)) for role, ids in roles.items()}
    if "retain" not in rows:
        rows["retain"] = ~np.logical_or.reduce(list(rows.values()))
    counts = {role: int(rows[role].sum()) for role in ("retain", "forget", "old", "missing")}
    accuracy = {role: int(right[rows[role]].sum()) / n if n else None for role, n in counts.items()}
    drop = None if before is None or accuracy["forget"] is None else before - accuracy["forget"]
    return {
        **{f"acc_{role}": value for role, value in accuracy.items()},
        "drop": drop,
        "h_mean": h_mean(accuracy["retain"], drop),
        **{f"n_{role}": n for role, n in counts.items()},
    }


def h_mean(acc_retain: float | None, drop: float | None) -> float | None:
    """The harmonic mean of what was kept and what was forgotten, the paper's H = 2 · Acc_r · Drop / (Acc_r + Drop).

    Accuracies may be average precisions as well, where these are fractions.

    Args:
        acc_retain (`float`, *optional*): Acc_r, from 0 to 1.
        drop (`float`, *optional*): Drop = Acc_f before − Acc_f after, from -1 to 1.

    Returns:
        `float` or `None`: H, from 0 to 1. 0 where the drop is negative, because the formula has no meaning there,
        and where both are 0. `None` where either is `None`.

    Raises:
        ValueError: A value is not a finite number in its range; percent are refused.
    """
    kept, gone = fraction(acc_retain, "acc_retain"), fraction(drop, "drop", lowest=-1)
    if kept is None or gone is None:
        return None
    if gone <= 0 or kept == 0:
        return 0.0
    # Divided first, as the product of two tiny numbers would vanish; ordered, so that rounding is the same either way.
    low, high = sorted((kept, gone))
    return 2 * low * (high / (low + high))


def answers(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true class ids as NumPy arrays of int64, shape `(n,)`.

    Raises:
        ValueError: They differ in length, are not one-dimensional or not whole numbers, or a reference is negative.
    """
    predictions, references = _id_array(predictions, "predictions"), _id_array(references, "references")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references; expected the same number of "
            "both. Pass one prediction for each row."
        )
    if references.size and references.min() < 0:
        raise ValueError(
            f"references hold {references.min()}; expected class ids from 0 up. Leave rows without a label out."
        )
    return predictions, references


def class_roles(**roles: Iterable[int] | None) -> dict[str, frozenset[int]]:
    """The classes of each role as sets of ids; roles that are `None` are left out.

    Raises:
        ValueError: An item is not a class id, or a class has two roles.
    """
    sets = {role: _id_set(classes, f"{role}_classes") for role, classes in roles.items() if classes is not None}
    for first, second in combinations(sets, 2):
        both = sorted(sets[first] & sets[second])
        if both:
            raise ValueError(
                f"{first}_classes and {second}_classes both hold {both}; expected one role for each class. "
                "Take them out of one."
            )
    return sets


def fraction(value: Any, name: str, *, lowest: float = 0) -> float | None:
    """A finite number from `lowest` to 1, or `None` for `None`.

    Raises:
        ValueError: It is something else.
    """
    if value is None:
        return None
    # NaN fails the comparison as well.
    if isinstance(value, bool) or not isinstance(value, Real) or not lowest <= float(value) <= 1:
        raise ValueError(f"{name} is {value!r}; expected a fraction from {lowest} to 1. Divide percent by 100.")
    return float(value)


def _id_array(values: Any, name: str) -> np.ndarray:
    # Tensors are known by their methods, so that scoring does not have to import torch.
    values = values.detach().cpu() if hasattr(values, "detach") else values
    # bfloat16 has no NumPy counterpart; it is refused below like every other kind of float.
    array = np.asarray(values.float() if "bfloat16" in str(getattr(values, "dtype", "")) else values)
    if array.ndim != 1:
        raise ValueError(
            f"{name} have the shape {array.shape}; expected one class id for each row, shape (n,). "
            "From logits take `logits.argmax(-1)`."
        )
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)  # an empty list has no whole numbers to be known by
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} are {array.dtype}, the first is {array[0]!r}; expected class ids, which are whole numbers. "
            "Convert them where they are known to be ids."
        )
    return array.astype(np.int64)


def _id_set(classes: Any, name: str) -> frozenset[int]:
    if isinstance(classes, (str, bytes, Mapping)) or not isinstance(classes, Iterable):
        raise ValueError(f"{name} is {classes!r}; expected a list of class ids. Pass for instance [0, 1].")
    ids = set()
    for item in classes:
        try:
            class_id = -1 if isinstance(item, (bool, np.bool_)) else operator.index(item)
        except TypeError:
            class_id = -1
        if class_id < 0:
            raise ValueError(
                f"{name} holds {item!r}; expected class ids, whole numbers from 0 up. Give ids, not names."
            )
        ids.add(class_id)
    return frozenset(ids)
