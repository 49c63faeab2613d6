"""What a reference must be: a model that never learned the forgotten classes, as far as weights and answers show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...compat import is_foreign
from ...errors import InvalidInputError
from ...objectives import HeadRecorder, is_detector
from ...roles import ClassRoles
from ..attacks.detector_states import DetectorStates
from ..samples import Samples
from ..statistics import interval_of_hits
from ..subjects import LOGITS, Subject, head_path

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


def check_weights(
    original: Subject, forgotten: Subject, references: Sequence[Subject], fingerprints: Sequence[str]
) -> None:
    """Checks by their weights that references are trainings of their own.

    The forgotten model under another name, the original, or another run that forgot from the same base would make
    everything look gone. They differ from it in a few tensors only. Refused is a reference whose class head has the
    weights of the original, of the forgotten model or of another reference bit for bit, if a further tensor is equal
    as well. A model that was trained without the classes has a head of its own, also above a frozen backbone that it
    shares with the original; and one below a fixed head has a backbone of its own. Precision does not count, nor do
    tensors that hold one value throughout, as a new bias does.

    Not seen is a copy whose head was changed, too; [`check_references`] refuses it if it still answers.

    Args:
        original ([`Subject`]):
            The model before anything was forgotten.
        forgotten ([`Subject`]):
            The model afterwards.
        references (`Sequence[Subject]`):
            The models. Random weights are not checked.
        fingerprints (`Sequence[str]`):
            The hashes of the weights of all of them, in this order.

    Raises:
        InvalidInputError: If one has the weights of another model.
    """
    seen = list(zip([original, forgotten], ["the original", "the forgotten model"], fingerprints[:2], strict=True))
    for reference, fingerprint in zip(references, fingerprints[2:], strict=True):
        if reference.kind != "retrained":
            continue
        for other, twin, hashed in seen:
            if fingerprint == hashed:
                found = f"{reference.name}, which has the weights of {twin}"
            elif _has_head_of(reference.model, other.model):
                found = f"{reference.name}, whose class head and more has the weights of {twin}"
            else:
                continue
            own = "trained with another seed" if twin.startswith("retrained") else "trained without the classes"
            fix = f"Give one that was {own} (--retrain, `retrained_models`), or leave it out."
            raise InvalidInputError("reference", found, "a model of its own weights", fix)
        seen.append((reference, reference.name, fingerprint))


def _has_head_of(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same class head bit for bit, and a further tensor."""
    others = dict(other.named_parameters())
    head = _head_weights(model)
    if not head or not all(_are_equal(weight, others.get(name)) for name, weight in head.items()):
        return False
    rest = (pair for pair in model.named_parameters() if pair[0] not in head)
    return any(_are_equal(weight, others.get(name)) for name, weight in rest)


def _head_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight matrices of the class head by name; the last matrix of a model whose head is not known."""
    matrices: dict[str, Tensor] = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
    if is_detector(model):
        linears = {id(linear.weight) for linear in HeadRecorder(model).linears}
        return {name: weight for name, weight in matrices.items() if id(weight) in linears}
    path = head_path(model)
    of_head = {name: weight for name, weight in matrices.items() if path and name.startswith(f"{path}.")}
    return of_head or dict(list(matrices.items())[-1:])


def _are_equal(weight: Tensor, other: Tensor | None) -> bool:
    """Whether two weights that were learned are equal, as far as the coarser precision of both tells."""
    if other is None or weight.shape != other.shape or any(map(_is_not_plain, (weight, other))):
        return False
    if bool((weight == weight.flatten()[:1]).all()):
        return False
    coarse = min(weight.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(weight.to(coarse), other.to(weight.device, coarse))


def _is_not_plain(weight: Tensor) -> bool:
    return is_foreign(weight) or not weight.is_floating_point()


def known(subjects: Sequence[Subject], judge: Samples, roles: ClassRoles) -> dict[str, dict[str, float]]:
    """What models know before any attack, in points.

    Args:
        subjects (`Sequence[Subject]`):
            The models.
        judge ([`Samples`]):
            What their answers are judged on: samples, or the annotated objects of images.
        roles ([`ClassRoles`]):
            The forgotten and the kept classes.

    Returns:
        `dict[str, dict[str, float]]`: By name of the model: `kept`, the share of the kept samples that it answers
        right; `forgotten`, the mean [`~Answers.recognition`] of the forgotten classes; and `margin`, half of the 95 %
        interval of the share of the forgotten samples that it answers right.
    """
    found = {}
    for subject in subjects:
        answers = Answers.of(subject, judge)
        own = np.isin(answers.labels, list(roles.forget))
        low, high = interval_of_hits((answers.given == answers.labels)[own][None]) if own.any() else (0.0, 1.0)
        found[subject.name] = {
            "kept": 100 * answers.right(roles.retain),
            "forgotten": 100 * float(np.mean([answers.recognition(class_id) for class_id in roles.forget])),
            "margin": 50 * (high - low),
        }
    return found


def check_references(original: Subject, references: Sequence[Subject], judge: Samples, roles: ClassRoles) -> None:
    """Checks by their answers that retrained models are what a forgotten one may be compared with.

    Beside one that answers with a forgotten class, everything would look forgotten.

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
