"""Membership inference: do the outputs tell which samples of the forgotten classes were trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.svm import SVC

from ..base import Attack, AuditContext, Measurement
from ..samples import Samples
from ..subjects import LOGITS, Subject

RESAMPLES = 1000
_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Membership(Attack):
    """Tells trained samples of the forgotten classes from others of the same classes, by one signal: AUC in points.

    Members are the attacker's samples of the forgotten classes, which the original was trained on if they are from
    its training data. Non-members are the judge's samples of the same classes, as many of each class: compared with
    samples of other classes, every model that forgot a class would seem to have forgotten its members. Signals, each
    with the sign that training gives it: the loss −log p_y; the entropy of the answer; whether the answer is correct;
    the confidence of the answer, max p; and the modified entropy −(1 − p_y) log p_y − Σ_{i≠y} p_i log(1 − p_i) of
    https://arxiv.org/abs/2003.10595. (p_y itself has the AUC of the loss.) 50 is chance.

    Judged by the distance from the reference: an AUC of 30 tells as much about the members as one of 70.

    Attacker: may ask for probabilities, and has candidates with their labels. Cost: one forward of the samples.

    Args:
        limit (`int`, *optional*, defaults to 1000):
            Largest number of members.
    """

    name = "membership"
    title = "membership inference"
    knowledge = "sees probabilities, has labelled candidates"
    judged = "distance"

    limit: int = 1000

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and context.has_members

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        members, others = balanced(context, context.roles.forget, self.limit)
        of_members = signals(subject, context.attacker, members)
        of_others = signals(subject, context.judge, others)
        return [area(name, wins(of_members[name], of_others[name])) for name in of_members]


@dataclass(frozen=True, kw_only=True)
class MembershipClassifier(Attack):
    """The share of the trained samples of forgotten classes that a classifier calls members, in points.

    The "MIA" of the unlearning literature (SalUn, https://arxiv.org/abs/2310.12508): a support vector machine with an
    RBF kernel (C = 3) on one feature, the probability of the true class, is fitted on members and non-members of the
    kept classes, as many of each. Papers report the share that is not called a member. What the classifier says where
    no kept sample lies is arbitrary, so read it beside the reference.

    Attacker: sees probabilities, has members and non-members of the kept classes. Cost: one forward and the fit.

    Args:
        limit (`int`, *optional*, defaults to 1000):
            Largest number of members.
    """

    name = "membership_classifier"
    title = "membership by a classifier"
    knowledge = "sees probabilities, has labelled candidates, and members of the kept classes"
    judged = "shown"

    limit: int = 1000

    def fits(self, context: AuditContext) -> bool:
        kept = balanced(context, context.roles.retain, self.limit)
        return super().fits(context) and context.has_members and all(len(rows) for rows in kept)

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        members, others = balanced(context, context.roles.retain, self.limit)
        inside = signals(subject, context.attacker, members)["loss"]
        outside = signals(subject, context.judge, others)["loss"]
        candidates, _ = balanced(context, context.roles.forget, self.limit)
        asked = signals(subject, context.attacker, candidates)["loss"]
        features = np.exp(np.concatenate([inside, outside]))[:, None]
        classifier = SVC(C=3, gamma="auto").fit(features, np.repeat([True, False], [len(inside), len(outside)]))
        called = classifier.predict(np.exp(asked)[:, None])
        return [Measurement.of_hits("probability of the true class", called[None])]


@dataclass(frozen=True, kw_only=True)
class ShadowMembership(Attack):
    """Membership by the likelihood ratio, with the retrained models as shadow models: AUC in points.

    The offline LiRA of https://arxiv.org/abs/2112.03570: φ = log p_y − log(1 − p_y) of a sample is compared with a
    Gaussian of its values in models that were not trained on it. These are the references. They are few, so that one
    variance serves all samples, as the paper advises, and only the mean belongs to the sample: members are those whose
    φ lies above it. A reference is compared with the other references. So that every model meets as many shadow
    models, the others meet all sets with one reference left out, and their figure is the mean.

    Attacker: as for [`Membership`], and trains models without the classes. Cost: the references, and one forward.

    Args:
        limit (`int`, *optional*, defaults to 1000):
            Largest number of members.
    """

    name = "shadow_membership"
    title = "membership with shadow models"
    knowledge = "sees probabilities, has labelled candidates, and trains models without the classes"
    judged = "distance"

    limit: int = 1000

    def fits(self, context: AuditContext) -> bool:
        return super().fits(context) and context.has_members and len(_shadows(context)) > 1

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        shadows = _shadows(context)
        left_out = [subject] if any(shadow is subject for shadow in shadows) else shadows
        members, others = balanced(context, context.roles.forget, self.limit)
        found = []
        for absent in left_out:
            present = [shadow for shadow in shadows if shadow is not absent]
            of_members, of_others = (
                _log_odds(subject, samples, rows) - np.mean([_log_odds(s, samples, rows) for s in present], axis=0)
                for samples, rows in ((context.attacker, members), (context.judge, others))
            )
            found.append(wins(of_members, of_others))
        return [area("likelihood ratio", np.mean(found, axis=0))]


def _shadows(context: AuditContext) -> list[Subject]:
    return [reference for reference in context.references if reference.kind == "retrained"]


def balanced(context: AuditContext, classes: Sequence[int], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many samples of each class from the attacker as from the judge: at most `limit` from either."""
    each = max(1, limit // max(1, len(classes)))
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for class_id in sorted(classes):
        rng = context.rng("membership", class_id)
        rows = [rng.permutation(samples.of([class_id])) for samples in (context.attacker, context.judge)]
        count = min(each, *map(len, rows))
        for side, drawn in zip(chosen, rows, strict=True):
            side.append(drawn[:count])
    members, others = (np.concatenate(side) if side else np.array([], dtype=np.int64) for side in chosen)
    return members, others


def signals(subject: Subject, samples: Samples, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The signals of [`Membership`] by name, float64, shape `(n,)`, larger for members."""
    logits, labels = subject.states(samples)[LOGITS][rows].astype(np.float64), samples.labels[rows]
    log_p = log_softmax(logits, axis=1)
    p, own = np.exp(log_p), np.eye(logits.shape[1], dtype=bool)[labels]
    log_own, rest = log_p[own], np.log1p(-p.clip(max=1 - _EPS))
    return {
        "loss": log_own,
        "entropy": (p * log_p).sum(1),
        "correctness": (log_p.argmax(1) == labels).astype(np.float64),
        "confidence": p.max(1),
        "modified entropy": (1 - p[own]) * log_own + np.where(own, 0, p * rest).sum(1),
    }


def _log_odds(subject: Subject, samples: Samples, rows: np.ndarray) -> np.ndarray:
    log_p = signals(subject, samples, rows)["loss"]
    return log_p - np.log(-np.expm1(log_p.clip(max=-_EPS)))


def wins(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each member has a larger signal than each non-member, ½ if equal, shape `(members, others)`."""
    return (members[:, None] > others) + 0.5 * (members[:, None] == others)


def area(setting: str, won: np.ndarray, seed: int = 0) -> Measurement:
    """The AUC of [`wins`] in points, with the bootstrap interval over members and non-members."""
    rng = np.random.default_rng(seed)
    by_member, by_other = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in won.shape)
    low, high = np.percentile(((by_member @ won) * by_other).sum(1), (2.5, 97.5))
    return Measurement(setting, 100 * float(won.mean()), 100 * float(low), 100 * float(high))
