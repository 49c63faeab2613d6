"""Names of scores, the scores of a classifier that forgets, and the checks that all scores share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..roles import ClassRoles


@dataclass(frozen=True)
class MetricName:
    """Names of a metric in [0, 1] that measures how well a class is recognised.

    Args:
        prefix (`str`):
            Prefix of keys of scores: `"acc"` in `acc_forget`, `acc_retain`, ….
        symbol (`str`):
            Symbol in the papers: `"Acc"` in Acc_f, Acc_r, Acc_o and Acc_m.
        title (`str`):
            Name of the metric in words, e.g. `"average precision"`.
    """

    prefix: str
    symbol: str
    title: str

    def key(self, role: str) -> str:
        """Returns the key of a score, for a role (`"forget"`, `"retain"`, `"old"`, `"missing"`) or other classes."""
        return f"{self.prefix}_{role}"

    def symbol_of(self, role: str) -> str:
        """Returns the papers' symbol for the score of a role: `"Acc_f"` for `"forget"`."""
        return f"{self.symbol}_{role[0]}"


ACCURACY = MetricName("acc", "Acc", "accuracy")
AVERAGE_PRECISION = MetricName("ap", "AP", "average precision")


def measure_of(*scores: Mapping[str, Any]) -> MetricName:
    """Returns the names of the metric behind scores, recognised by their keys; accuracy if there are no scores."""
    names: Iterable[str] = (name for found in scores for name in found)
    return AVERAGE_PRECISION if any(name.startswith(f"{AVERAGE_PRECISION.prefix}_") for name in names) else ACCURACY


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
            Predicted class ids. An id that is not a class, such as -1 for "none", counts as wrong.
        references (array or tensor of shape `(n,)`):
            True class ids, from 0 up.
        forget_classes (`Iterable[int]`):
            Classes to forget. May be empty, to score a model before any task.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            Classes that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            Classes to retain without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to all other classes):
            Classes to retain. If given, rows of classes without a role are ignored.
        accuracy_forget_before (`float`, *optional*):
            Acc_f of the model before the task, in [0, 1].

    Returns:
        `dict[str, float | int | None]`: Accuracies are fractions from 0 to 1.

        - `acc_retain` (Acc_r), `acc_forget` (Acc_f), `acc_old` (Acc_o), `acc_missing` (Acc_m): the share of right
          predictions on the rows of the role. `None` without such rows: unlike NaN it equals itself, is valid JSON,
          and raises in a comparison or a mean.
        - `drop` (Drop): Acc_f before − Acc_f after, from -1 to 1; `None` if either is unknown.
        - `h_mean` (H): see [`h_mean`]; `None` if Acc_r or Drop is `None`.
        - `n_retain`, `n_forget`, `n_old`, `n_missing`: the numbers of rows.

    Raises:
        InvalidInputError: If predictions and references differ in length, are not one-dimensional or not whole
            numbers, if a reference is negative, if a class has two roles, or if the accuracy is not a fraction.

    Example:
        ```py
        >>> scores = continual_forgetting_scores([1, 1, 2], [0, 1, 2], forget_classes=[0], accuracy_forget_before=1.0)
        >>> scores["acc_forget"], scores["acc_retain"], scores["h_mean"]
        (0.0, 1.0, 1.0)
        ```
    """
    predictions, references = class_ids(predictions, references)
    before = fraction(accuracy_forget_before, "accuracy_forget_before")
    present = np.unique(references).tolist()
    roles = ClassRoles.of(forget_classes, old_classes, missing_classes, retain_classes, present=present)

    right = predictions == references
    rows = {role: np.isin(references, ids) for role, ids in roles.as_dict().items()}
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
    """Returns the harmonic mean of retained accuracy and drop, the paper's H = 2 · Acc_r · Drop / (Acc_r + Drop).

    Average precisions work as well.

    Args:
        acc_retain (`float`, *optional*):
            Acc_r, from 0 to 1.
        drop (`float`, *optional*):
            Drop = Acc_f before − Acc_f after, from -1 to 1.

    Returns:
        `float` or `None`: H, from 0 to 1. It is 0 if the drop is negative, for which the formula has no meaning, or if
        both are 0. It is `None` if either is `None`.

    Raises:
        InvalidInputError: If a value is not a finite number in its range. Values in percent are refused.
    """
    kept, gone = fraction(acc_retain, "acc_retain"), fraction(drop, "drop", lowest=-1)
    if kept is None or gone is None:
        return None
    if gone <= 0 or kept == 0:
        return 0.0
    # Divided first, because the product of two tiny numbers would vanish. Sorted, so that both orders round alike.
    low, high = sorted((kept, gone))
    return 2 * low * (high / (low + high))


def class_ids(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns predicted and true class ids as NumPy arrays, int64, shape `(n,)`.

    Args:
        predictions (array or tensor of shape `(n,)`):
            Predicted class ids.
        references (array or tensor of shape `(n,)`):
            True class ids.

    Raises:
        InvalidInputError: If they differ in length, are not one-dimensional or not whole numbers, or if a reference is
            negative.
    """
    predictions, references = _id_array(predictions, "predictions"), _id_array(references, "references")
    if len(predictions) != len(references):
        raise InvalidInputError(
            "len(predictions)", len(predictions), f"{len(references)}, one for each of the `references`"
        )
    if references.size and references.min() < 0:
        raise InvalidInputError(
            "references", int(references.min()), "class ids from 0 up", "Leave rows without a label out."
        )
    return predictions, references


def fraction(value: Any, name: str, *, lowest: float = 0) -> float | None:
    """Returns a finite number from `lowest` to 1, or `None` for `None`.

    Args:
        value (`float`, *optional*):
            The number.
        name (`str`):
            Name of the argument, for the error.
        lowest (`float`, *optional*, defaults to 0):
            The smallest value.

    Raises:
        InvalidInputError: If it is anything else.
    """
    if value is None:
        return None
    # NaN fails the comparison too.
    if isinstance(value, bool) or not isinstance(value, Real) or not lowest <= float(value) <= 1:
        raise InvalidInputError(name, value, f"a fraction from {lowest} to 1", "Divide percent by 100.")
    return float(value)


def _id_array(values: Any, name: str) -> np.ndarray:
    # Tensors are recognised by their methods, so that scoring need not import torch.
    values = values.detach().cpu() if hasattr(values, "detach") else values
    # NumPy has no bfloat16. Like every other float it is refused below.
    array = np.asarray(values.float() if "bfloat16" in str(getattr(values, "dtype", "")) else values)
    if array.ndim != 1:
        raise InvalidInputError(
            f"{name}.shape", array.shape, "(n,), one class id for each row", "From logits take `logits.argmax(-1)`."
        )
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)  # NumPy makes floats of an empty list
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}.dtype", str(array.dtype), "class ids, which are whole numbers")
    return array.astype(np.int64)
