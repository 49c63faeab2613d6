"""How alike a model and the references are: their states and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from ..base import Attack, AuditContext, Measurement
from ..subjects import LOGITS, Subject


@dataclass(frozen=True, kw_only=True)
class Similarity(Attack):
    """Linear CKA of the states with those of each reference, and KL(reference ‖ model) of the answers.

    CKA as in https://arxiv.org/abs/1905.00414: ‖XᵀY‖² / (‖XᵀX‖ · ‖YᵀY‖) of centred states, from 0 to 1; KL in nats.
    Both on samples of the forgotten and of the kept classes. A forgotten model need not be the reference; these
    figures tell where it differs, and do not enter the recovery gap. A reference is compared with the others.

    Attacker: none, this is a diagnosis. Cost: one forward.
    """

    name = "similarity"
    title = "similarity to the reference"
    knowledge = "diagnosis, not an attack"
    judged = "shown"
    unit = "CKA (0 to 1) and nats"

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and any(other.kind == "retrained" for other in context.references)

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        others = [other for other in context.references if other is not subject and other.kind == "retrained"]
        if not others:
            return []  # the only reference has nothing to be compared with
        own = subject.states(context.judge)
        measurements = []
        for who, chosen in _roles(context):
            for place in own:
                pairs = [(own[place][chosen], other.states(context.judge)[place][chosen]) for other in others]
                if place == LOGITS:
                    values = [_divergence(theirs, mine) for mine, theirs in pairs]
                    measurements.append(Measurement.of_values(f"KL, {who}", values, where=place))
                else:
                    values = [_cka(mine, theirs) for mine, theirs in pairs]
                    measurements.append(Measurement.of_values(f"CKA, {who}", values, where=place))
        return measurements


def _roles(context: AuditContext) -> Iterator[tuple[str, np.ndarray]]:
    for who, classes in (("forgotten", context.roles.forget), ("kept", context.roles.retain)):
        if len(chosen := context.judge.of(classes)):
            yield who, chosen


def _cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (states.astype(np.float64) - states.mean(0) for states in (x, y))
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm else 0.0


def _divergence(reference: np.ndarray, model: np.ndarray) -> float:
    log_p, log_q = (log_softmax(logits.astype(np.float64), axis=1) for logits in (reference, model))
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
