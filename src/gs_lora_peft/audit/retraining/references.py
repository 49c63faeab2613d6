"""What a reference must be: a model that never learned the forgotten classes, as far as its answers show it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InvalidInputError
from ...roles import ClassRoles
from ..attacks.detector_states import DetectorStates
from ..samples import Samples
from ..subjects import LOGITS, Subject

logger = logging.getLogger(__name__)

_LEAST, _SHARE = 0.25, 0.5  # recognition that is refused in a reference: above both, the latter of the original's


@dataclass(frozen=True)
class Answers:
    """What a model answers before any attack.

    Args:
        labels (`np.ndarray`):
            Class id of each sample, of a detector of each annotated object, int64, shape `(n,)`.
        given (`np.ndarray`):
            Class id that the model answers, int64, shape `(n,)`; -1 for an object that no box covers.
    """

    labels: np.ndarray
    given: np.ndarray

    @classmethod
    def of(cls, subject: Subject, samples: Samples) -> Answers:
        """The answers of a model to all samples; computed once."""
        if subject.is_detector:
            return cls(*DetectorStates.of(subject, samples).answers())
        return cls(samples.labels, subject.states(samples)[LOGITS].argmax(1))

    def right(self, classes: Sequence[int]) -> float:
        """The share of the samples of some classes that are answered with their class."""
        return _share((self.given == self.labels)[np.isin(self.labels, list(classes))])

    def recognition(self, class_id: int) -> float:
        """By how much more often the samples of a class are answered with it than all others.

        1 for a model that knows the class; 0 for one that knows nothing, whatever it answers, and how often.
        """
        own, answered = self.labels == class_id, self.given == class_id
        return _share(answered[own]) - _share(answered[~own])


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else 0.0


def check_references(original: Subject, references: Sequence[Subject], judge: Samples, roles: ClassRoles) -> None:
    """Checks by their answers that retrained models are what a forgotten one may be compared with.

    Beside one that answers with a forgotten class, everything would look forgotten; it is refused. Of one that knows
    little of the other classes a warning is logged: beside it everything would look remembered.

    Args:
        original ([`Subject`]):
            The model before anything was forgotten.
        references (`Sequence[Subject]`):
            The models. Random weights are not checked.
        judge ([`Samples`]):
            What their answers are judged on: samples, or the annotated objects of images, as the box that covers one
            and is answered with the most confidence names it.
        roles ([`ClassRoles`]):
            The forgotten and the kept classes.

    Raises:
        InvalidInputError: If one recognises a forgotten class more than half as well as the original, and by more than
            25 points.
    """
    before = Answers.of(original, judge)
    usual = before.right(roles.retain)
    for reference in references:
        if reference.kind != "retrained":
            continue
        answers = Answers.of(reference, judge)
        for class_id in roles.forget:
            if answers.recognition(class_id) > max(_LEAST, _SHARE * before.recognition(class_id)):
                share = answers.right([class_id])
                found = f"{reference.name} recognises {share:.0%} of the samples of a forgotten class"
                expected = "a model that was trained without all forgotten classes, and long enough not to guess them"
                fix = (
                    "Retrain one without them (--retrain, `retrained_models`). If it was, raise its `epochs` "
                    "(--retrain-epochs): a head that has hardly been trained still answers with any class."
                )
                raise InvalidInputError("reference", found, expected, fix)
        right = answers.right(roles.retain)
        if right < 0.5 * usual:
            logger.warning(
                "%s is right on %.0f %% of the kept samples, the original on %.0f %%: beside a model that knows so "
                "little, much looks remembered. Raise `epochs` of its recipe (--retrain-epochs).",
                reference.name,
                100 * right,
                100 * usual,
            )
