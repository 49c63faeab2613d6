"""Classifiers on frozen states: linear, nearest neighbours, nearest centroid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid as CentroidClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..base import Attack, AuditContext, Measurement
from ..subjects import Subject

AMONG_FORGOTTEN = "among the forgotten"
AMONG_ALL = "among all"


@dataclass(frozen=True, kw_only=True)
class Probe(Attack):
    """A classifier on the frozen states of every block.

    Among the forgotten, the classifier knows the forgotten classes only; this needs two of them. Among all, it knows
    all classes, and only samples of the forgotten ones are judged.

    Args:
        limit (`int`, *optional*, defaults to 10000):
            Largest number of the attacker's samples.
        every (`int`, *optional*, defaults to 1):
            Attack every block (1), every second one (2), ...; the last one always.
    """

    knowledge = "has the weights, and labelled samples of the classes"

    limit: int = 10_000
    every: int = 1

    def shots_and_draws(self) -> Iterator[tuple[int | None, int]]:
        """Yields samples of each class (`None`: all) and the number of draws."""
        yield None, 1

    @abstractmethod
    def classifier(self, shots: int | None, samples: int) -> Any:
        """Returns a new classifier of scikit-learn for so many shots and samples."""

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        train, test = subject.states(context.attacker), subject.states(context.judge)
        judged = context.judge.of(context.roles.forget)
        measurements = []
        for among, classes in class_sets(context):
            for shots, draws in self.shots_and_draws():
                rows = [self._rows(context, classes, shots, draw) for draw in range(draws)]
                setting = f"{among}, {'all samples' if shots is None else f'{shots}-shot'}"
                for place in self._places(list(train)):
                    hits = [
                        self._hits(train[place], context.attacker.labels, of_draw, test[place][judged], shots)
                        == context.judge.labels[judged]
                        for of_draw in rows
                    ]
                    measurements.append(Measurement.of_hits(setting, np.array(hits), where=place))
        return measurements

    def _rows(self, context: AuditContext, classes: Sequence[int], shots: int | None, draw: int) -> np.ndarray:
        if shots is not None:
            return context.draw(shots, classes, "probe", shots, draw)
        each = max(1, self.limit // len(classes))
        return context.draw(each, classes, "probe", draw)

    def _hits(
        self, train: np.ndarray, labels: np.ndarray, rows: np.ndarray, test: np.ndarray, shots: int | None
    ) -> np.ndarray:
        return self.classifier(shots, len(rows)).fit(train[rows], labels[rows]).predict(test)

    def _places(self, places: list[str]) -> list[str]:
        blocks = sorted({int(place.split()[1]) for place in places if place.startswith("block")})
        kept = {number for number in blocks if (blocks[-1] - number) % self.every == 0}
        return [place for place in places if not place.startswith("block") or int(place.split()[1]) in kept]


def class_sets(context: AuditContext) -> Iterator[tuple[str, list[int]]]:
    """Yields the classes that an attacker tells apart: the forgotten ones, if there are two, and all."""
    forget = list(context.roles.forget)
    if len(forget) > 1:
        yield AMONG_FORGOTTEN, forget
    yield AMONG_ALL, sorted({*forget, *context.roles.retain, *context.roles.missing})


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probe):
    """Logistic regression on frozen, standardised states, with few and with all samples.

    The linear probe of representation learning (https://arxiv.org/abs/1610.01644), used to audit unlearning as in
    https://arxiv.org/abs/2503.06991: what a retrained model lets a probe read is not knowledge of the forgotten data,
    what exceeds it is. L2 with C = 1, standardised on the attacker's samples.

    Attacker: has the weights, and n labelled samples of each class. Cost: one forward of the samples and a convex fit
    for each block and draw.

    Args:
        shots (`tuple[int, ...]`, *optional*, defaults to `(1, 4, 16)`):
            Samples of each class, besides a probe on all of them.
        draws (`int`, *optional*, defaults to 10):
            Draws of the samples.
    """

    name = "linear_probe"
    title = "linear probe"

    shots: tuple[int, ...] = (1, 4, 16)
    draws: int = 10

    @classmethod
    def quick(cls) -> LinearProbe:
        return cls(shots=(4,), draws=5, every=2)

    def shots_and_draws(self) -> Iterator[tuple[int | None, int]]:
        yield from ((shots, self.draws) for shots in self.shots)
        yield None, 1

    def classifier(self, shots: int | None, samples: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours(Probe):
    """k nearest neighbours by the cosine of frozen states, with all samples of the attacker.

    Non-parametric, so that nothing is fitted (kNN evaluation of https://arxiv.org/abs/1805.01978).

    Attacker: has the weights and labelled samples. Cost: one forward of the samples.

    Args:
        neighbours (`int`, *optional*, defaults to 5):
            k.
    """

    name = "knn"
    title = "nearest neighbours"

    neighbours: int = 5

    @classmethod
    def quick(cls) -> NearestNeighbours:
        return cls(every=2)

    def classifier(self, shots: int | None, samples: int) -> Any:
        return KNeighborsClassifier(min(self.neighbours, samples), metric="cosine")


@dataclass(frozen=True, kw_only=True)
class NearestCentroid(Probe):
    """The nearest class mean of frozen states: are the forgotten classes still clusters of their own?

    As in nearest-mean classification (https://arxiv.org/abs/1611.07725), on standardised states.

    Attacker: has the weights and labelled samples. Cost: one forward of the samples.
    """

    name = "centroid"
    title = "nearest centroid"

    @classmethod
    def quick(cls) -> NearestCentroid:
        return cls(every=2)

    def classifier(self, shots: int | None, samples: int) -> Any:
        return make_pipeline(StandardScaler(), CentroidClassifier())
