"""Verification, as face recognition measures it: do two embeddings show the same person?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..roles import ClassRoles

FALSE_ACCEPT_RATES = (1e-2, 1e-3)
MAX_PAIRS = 2_000_000
_PAIRS_AT_ONCE = 1 << 16  # pairs with their embeddings in memory at the same time


def verification_scores(
    similarities: Any,
    same: Any,
    *,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    folds: int = 10,
) -> dict[str, float | int | None]:
    """Scores pairs of images by the similarity of their embeddings.

    A pair is accepted as the same person if its similarity reaches a threshold. TAR is the share of accepted pairs
    among the pairs of the same person, FAR that among the pairs of different people.

    Args:
        similarities (array or tensor of shape `(n,)`):
            Similarities, e.g. cosines.
        same (array or tensor of shape `(n,)`):
            Whether each pair shows the same person.
        false_accept_rates (`Sequence[float]`, *optional*, defaults to `(0.01, 0.001)`):
            FARs at which TAR is returned.
        folds (`int`, *optional*, defaults to 10):
            Number of folds for the accuracy. A fold takes the next n / `folds` pairs of either kind, in the given
            order. With the list of LFW these are the folds of its protocol.

    Returns:
        `dict[str, float | int | None]`: Rates are fractions from 0 to 1.

        - `accuracy`: 1:1 accuracy at the best threshold, by cross-validation: for each fold the threshold that is best
          on the others. Pairs of the same person and pairs of different people count half each, whatever their number.
          `None` with fewer than `folds` pairs of a kind.
        - `eer`: the error rate at the threshold at which FAR equals 1 − TAR, interpolated between thresholds.
        - `tar_at_far_0.01`, …: the highest TAR of all thresholds with at most this FAR. With fewer than 1/FAR pairs of
          different people, none of them may be accepted.
        - `n_same`, `n_different`: the numbers of pairs. Without pairs of both kinds all other values are `None`.

    Raises:
        InvalidInputError: If the two differ in length or are not one-dimensional, if a similarity is not finite, if
            `same` holds other values than booleans (or 1 and 0), if a rate is not in [0, 1], or if `folds` is less
            than 2.

    Example:
        ```py
        >>> scores = verification_scores([0.9, 0.8, 0.3, 0.1], [True, True, False, False], folds=2)
        >>> scores["accuracy"], scores["eer"], scores["tar_at_far_0.01"]
        (1.0, 0.0, 1.0)
        ```
    """
    similarity, is_same = _pairs(similarities, same)
    for rate in false_accept_rates:
        if not 0 <= rate <= 1:
            raise InvalidInputError("false_accept_rates", rate, "fractions from 0 to 1, e.g. 1e-3")
    if folds < 2:
        raise InvalidInputError("folds", folds, "at least 2, because each threshold is chosen on the other folds")
    tar_names = [f"tar_at_far_{rate:g}" for rate in false_accept_rates]
    counts = {"n_same": int(is_same.sum()), "n_different": int((~is_same).sum())}
    if not all(counts.values()):
        return {**dict.fromkeys(["accuracy", "eer", *tar_names]), **counts}
    false_accepts, true_accepts, _ = _curve(is_same, similarity)
    # FAR − FRR rises from −1 to 1 along the curve and is 0 where both rates are equal.
    eer = np.interp(0.0, false_accepts + true_accepts - 1, false_accepts)
    tars = (true_accepts[false_accepts <= rate].max() for rate in false_accept_rates)
    return {
        "accuracy": _cross_validated_accuracy(similarity, is_same, folds) if min(counts.values()) >= folds else None,
        "eer": float(eer),
        **{name: float(tar) for name, tar in zip(tar_names, tars, strict=True)},
        **counts,
    }


def verification_by_role(
    embeddings: Any,
    labels: Any,
    *,
    forget_classes: Iterable[int],
    old_classes: Iterable[int] = (),
    missing_classes: Iterable[int] = (),
    retain_classes: Iterable[int] | None = None,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    folds: int = 10,
    max_pairs: int = MAX_PAIRS,
) -> dict[str, dict[str, float | int | None]]:
    """Scores verification of forgotten and of retained people: can the model still tell them apart?

    Pairs of images are compared by the cosine of their embeddings, for each role all pairs among its people. A single
    person gives no pair of different people. So the forgotten people are also compared with everyone: a pair of the
    same person shows a forgotten person twice, and a pair of different people shows a forgotten person and another one
    with a role.

    Args:
        embeddings (array or tensor of shape `(n, d)`):
            Embeddings of images, normalised or not.
        labels (array or tensor of shape `(n,)`):
            Ids of the people in the images.
        forget_classes (`Iterable[int]`):
            People to forget.
        old_classes (`Iterable[int]`, *optional*, defaults to none):
            People that earlier tasks forgot.
        missing_classes (`Iterable[int]`, *optional*, defaults to none):
            People to retain without replayed data.
        retain_classes (`Iterable[int]`, *optional*, defaults to all other people):
            People to retain.
        false_accept_rates (`Sequence[float]`, *optional*, defaults to `(0.01, 0.001)`):
            As in [`verification_scores`].
        folds (`int`, *optional*, defaults to 10):
            As in [`verification_scores`].
        max_pairs (`int`, *optional*, defaults to 2,000,000):
            The most pairs of the same person, and the most pairs of different people. If there are more, the same
            random ones are drawn every time. Of two million pairs of different people, 2,000 are accepted at a FAR of
            1e-3.

    Returns:
        `dict[str, dict]`: [`verification_scores`] of these pairs:

        - `retain`, `forget`, `old`, `missing`: all pairs among the people of the role. With fewer than two people,
          everything except the numbers of pairs is `None`.
        - `forget_against_all`, `old_against_all`: the same pairs of the same person, and all pairs of a person of the
          role with another person. One person is enough.

        All of them need two images of the same person, see [`verification_scores`].

    Raises:
        InvalidInputError: If embeddings and labels differ in number, if an embedding is zero or not finite, if a
            person has two roles, or if `max_pairs` is less than 1.
    """
    if max_pairs < 1:
        raise InvalidInputError("max_pairs", max_pairs, "1 or more")
    directions, people = _directions(embeddings, labels)
    roles = ClassRoles.of(forget_classes, old_classes, missing_classes, retain_classes)
    rows = {role: np.isin(people, ids) for role, ids in roles.as_dict().items()}
    if retain_classes is None:
        rows["retain"] = ~np.logical_or.reduce(list(rows.values()))
    scored = np.logical_or.reduce(list(rows.values()))

    def scores(of: np.ndarray, others: np.ndarray) -> dict[str, float | int | None]:
        first, second = _pairs_of(people, np.flatnonzero(of), np.flatnonzero(others), max_pairs)
        similarities, same = _cosines(directions, first, second), people[first] == people[second]
        return verification_scores(similarities, same, false_accept_rates=false_accept_rates, folds=folds)

    no_one = np.zeros_like(scored)
    among = {role: scores(rows[role], no_one) for role in ("retain", "forget", "old", "missing")}
    against_all = {f"{role}_against_all": scores(rows[role], scored & ~rows[role]) for role in ("forget", "old")}
    return among | against_all


def _curve(is_same: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns FAR and TAR by threshold, and the thresholds, beginning with the strictest."""
    # scikit-learn takes a second to import.
    from sklearn.metrics import roc_curve

    return roc_curve(is_same, similarity, drop_intermediate=False)


def _cross_validated_accuracy(similarity: np.ndarray, is_same: np.ndarray, folds: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    accuracies = []
    for others, fold in StratifiedKFold(folds).split(similarity, is_same):
        false_accepts, true_accepts, thresholds = _curve(is_same[others], similarity[others])
        accepted = similarity[fold] >= thresholds[np.argmax(true_accepts - false_accepts)]
        of_same, of_different = accepted[is_same[fold]], accepted[~is_same[fold]]
        accuracies.append((of_same.mean() + 1 - of_different.mean()) / 2)
    return float(np.mean(accuracies))


def _pairs_of(people: np.ndarray, of: np.ndarray, others: np.ndarray, max_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of all pairs of the same person in `of`, then of different people with at least one in `of`.

    There are at most `max_pairs` of each kind. `of` and `others` show different people.
    """
    of = of[np.argsort(people[of], kind="stable")]
    order, rows = np.concatenate([of, others]), np.arange(len(of))
    # Rows are sorted by person: partners of a row are the rows to the end of its person, then all later ones.
    ends = np.searchsorted(people[of], people[of], side="right")
    kinds = ((rows + 1, ends), (ends, np.full_like(ends, len(order))))
    pairs = [_drawn(starts, stops, max_pairs) for starts, stops in kinds]
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return order[first], order[second]


def _drawn(starts: np.ndarray, stops: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs every row i with each row from starts[i] to stops[i]; draws `most` of the pairs if there are more."""
    until = np.cumsum(stops - starts)
    total = int(until[-1]) if len(until) else 0
    # Numbers of pairs are drawn, because a list of all pairs grows with the square of the images.
    drawn = np.random.default_rng(0).choice(total, most, replace=False, shuffle=False) if total > most else None
    numbers = np.arange(total) if drawn is None else np.sort(drawn)
    first = np.searchsorted(until, numbers, side="right")
    return first, stops[first] - (until[first] - numbers)


def _cosines(directions: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosine of the two directions of each pair."""
    similarities = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        similarities[part] = np.einsum("nd,nd->n", directions[first[part]], directions[second[part]])
    return similarities


def _pairs(similarities: Any, same: Any) -> tuple[np.ndarray, np.ndarray]:
    similarity, is_same = _numbers(similarities, "similarities"), _array(same)
    if similarity.ndim != 1 or is_same.shape != similarity.shape:
        raise InvalidInputError(
            "similarities.shape", similarity.shape, f"(n,), the same as that of `same`, which is {is_same.shape}"
        )
    known = np.isin(is_same, (0, 1))
    if not known.all():
        raise InvalidInputError("same", is_same[~known][0], "True or False (or 1 or 0) for each pair")
    return similarity, is_same.astype(bool)


def _directions(embeddings: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    vectors, people = _numbers(embeddings, "embeddings"), _array(labels)
    if vectors.ndim != 2 or people.shape != vectors.shape[:1]:
        raise InvalidInputError(
            "embeddings.shape", vectors.shape, f"(n, d) with `labels` of shape (n,), which have {people.shape}"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        row = int(np.argmin(lengths))
        raise InvalidInputError(
            f"embeddings[{row}]", vectors[row].tolist(), "a vector other than zero, with a direction"
        )
    return vectors / lengths, people


def _numbers(values: Any, name: str) -> np.ndarray:
    array = _array(values).astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        raise InvalidInputError(name, float(array[~finite][0]), "finite numbers", "Check the model for NaN.")
    return array


def _array(values: Any) -> np.ndarray:
    # Tensors are recognised by their methods, so that scoring need not import torch.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)
