"""Attacks on embeddings as face recognition uses them: verification of pairs, and enrolment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...metrics import verification_scores
from ..base import Attack, AuditContext, Measurement
from ..subjects import EMBEDDING, Subject
from .probes import AMONG_ALL, class_sets

_PARTS = 10


@dataclass(frozen=True, kw_only=True)
class OnEmbeddings(Attack):
    """An attack by the cosines of embeddings, the input of the head; for models where that is one vector."""

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and EMBEDDING in context.original.states(context.judge)


@dataclass(frozen=True, kw_only=True)
class Verification(OnEmbeddings):
    """Do two images show the same class? TAR, in points, at a false accept rate, by the cosine of embeddings.

    The protocol of face verification, as in [`verification_by_role`]: pairs of the same forgotten class are accepted
    above a threshold, which accepts a share FAR of the pairs of different classes. Among the forgotten, both are
    forgotten; among all, one of the two at least. A rate needs 1/FAR pairs of different classes. The interval is that
    of a jackknife over tenths of the images.

    Attacker: has the embeddings, and no labelled sample at all. Cost: one forward.

    Args:
        rates (`tuple[float, ...]`, *optional*, defaults to `(0.01, 0.001)`):
            FARs.
        limit (`int`, *optional*, defaults to 1000):
            Largest number of images of forgotten classes, and of others.
    """

    name = "verification"
    title = "verification"
    knowledge = "has the embeddings"

    rates: tuple[float, ...] = (1e-2, 1e-3)
    limit: int = 1000

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        rng = context.rng(self.name)
        forgotten, others = (
            rng.permutation(context.judge.of(classes))[: self.limit]
            for classes in (context.roles.forget, (*context.roles.retain, *context.roles.missing))
        )
        embeddings, labels = subject.states(context.judge)[EMBEDDING], context.judge.labels
        measurements = []
        for among, _ in class_sets(context):
            rows = np.concatenate([forgotten, others]) if among == AMONG_ALL else forgotten
            pairs = _Pairs.of(embeddings[rows], labels[rows], len(forgotten))
            for rate in self.rates:
                if (~pairs.same).sum() >= 1 / rate and pairs.same.any():
                    measurements.append(pairs.measured(f"{among}, TAR at FAR {rate:g}", rate))
        return measurements


@dataclass(frozen=True)
class _Pairs:
    """Pairs of images, the first of a forgotten class: cosine, whether the classes are the same, and their tenths."""

    cosines: np.ndarray
    same: np.ndarray
    parts: np.ndarray  # of both images, shape (2, pairs)

    @classmethod
    def of(cls, embeddings: np.ndarray, labels: np.ndarray, forgotten: int) -> _Pairs:
        directions = normalised(embeddings)
        first, second = np.triu_indices(forgotten, 1, len(labels))
        cosines = directions[:forgotten] @ directions.T
        # The rows come in random order.
        return cls(cosines[first, second], labels[first] == labels[second], np.stack([first, second]) % _PARTS)

    def measured(self, setting: str, rate: float) -> Measurement:
        value = self._tar(slice(None), rate)
        left = [self._tar((self.parts != part).all(0), rate) for part in range(_PARTS)]
        error = np.sqrt((_PARTS - 1) / _PARTS * np.sum((np.array(left) - np.mean(left)) ** 2))
        low, high = np.clip([value - 1.96 * error, value + 1.96 * error], 0, 1)
        return Measurement(setting, 100 * value, 100 * float(low), 100 * float(high))

    def _tar(self, chosen: np.ndarray | slice, rate: float) -> float:
        cosines, same = self.cosines[chosen], self.same[chosen]
        # More folds than pairs: no 1:1 accuracy, which would take ten times as long.
        scores = verification_scores(cosines, same, false_accept_rates=[rate], folds=len(same) + 2)
        return float(scores[f"tar_at_far_{rate:g}"] or 0.0)


@dataclass(frozen=True, kw_only=True)
class Enrolment(OnEmbeddings):
    """Enrols the classes anew with n samples each, and identifies others by the cosine to the mean embedding.

    How a face recogniser gets to know a person: the template of a class is the mean of the n normalised embeddings.
    No weight changes. Among the forgotten, only these classes are enrolled; among all, all classes are, and samples of
    the forgotten ones are judged. It is a nearest-centroid classifier, as in https://arxiv.org/abs/1703.05175.

    Attacker: has the embeddings, and n labelled samples of each class. Cost: one forward.

    Args:
        shots (`tuple[int, ...]`, *optional*, defaults to `(1, 4, 16)`):
            Samples of each class, n.
        draws (`int`, *optional*, defaults to 20):
            Draws of the samples.
    """

    name = "enrolment"
    title = "enrolment"
    knowledge = "has the embeddings, and n labelled samples of each class"

    shots: tuple[int, ...] = (1, 4, 16)
    draws: int = 20

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        judged = context.judge.of(context.roles.forget)
        enrolled = normalised(subject.states(context.attacker)[EMBEDDING])
        probes = normalised(subject.states(context.judge)[EMBEDDING][judged])
        measurements = []
        for among, classes in class_sets(context):
            for shots in self.shots:
                hits = [
                    self._identified(enrolled[rows], context.attacker.labels[rows], probes)
                    == context.judge.labels[judged]
                    for rows in self._rows(context, classes, shots)
                ]
                measurements.append(Measurement.of_hits(f"{among}, {shots}-shot", np.array(hits)))
        return measurements

    def _rows(self, context: AuditContext, classes: list[int], shots: int) -> Iterator[np.ndarray]:
        for draw in range(self.draws):
            yield context.draw(shots, classes, self.name, shots, draw)

    @staticmethod
    def _identified(enrolled: np.ndarray, labels: np.ndarray, probes: np.ndarray) -> np.ndarray:
        known = np.unique(labels)
        templates = np.stack([enrolled[labels == class_id].mean(0) for class_id in known])
        return known[(probes @ normalised(templates).T).argmax(1)]


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
