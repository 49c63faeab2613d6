"""Attacks on detectors: their answers, their boxes, and a class head that is trained anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...objectives import Matched, matched_by_boxes
from ..base import Attack, AuditContext, Measurement
from ..subjects import Subject
from .detector_states import DetectorStates, average_precision

_IMAGES = 32  # in a batch
_OVERLAPS = np.arange(0.5, 1.0, 0.05)  # COCO's


@dataclass(frozen=True, kw_only=True)
class DetectorAttack(Attack):
    """An attack on the queries of a detector."""

    def fits(self, context: AuditContext) -> bool:
        return context.original.is_detector


@dataclass(frozen=True, kw_only=True)
class DetectorAnswer(DetectorAttack):
    """The average precision of the forgotten categories as the head answers: AP_f, which every paper reports.

    AP@[.5:.95] of COCO, in points; AP50 as a fact. The interval is a bootstrap over images.

    Attacker: only asks. Cost: one forward.

    Args:
        resamples (`int`, *optional*, defaults to 100):
            Bootstrap samples of the images.
    """

    name = "detector_answer"
    title = "the detector's answer"
    knowledge = "may ask the model"

    resamples: int = 100

    @classmethod
    def quick(cls) -> DetectorAnswer:
        return cls(resamples=20)

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        states = DetectorStates.of(subject, context.judge)
        found = average_precision(states, states.logits, context.roles.forget, self.resamples)
        return [Measurement("AP", found.ap, found.low, found.high, facts={"AP50": found.ap50})]


@dataclass(frozen=True, kw_only=True)
class ProposalAnswer(DetectorAttack):
    """The average precision of the forgotten categories as the encoder scores its proposals.

    RT-DETR and D-FINE choose their queries by class scores of the encoder, which no loss on the answers lowers. A
    decoder that forgot may be fed by an encoder that still names the category. Other detectors have no figure here.

    Attacker: has the weights. Cost: one forward.

    Args:
        resamples (`int`, *optional*, defaults to 100):
            Bootstrap samples of the images.
    """

    name = "proposal_answer"
    title = "the encoder's proposals"
    knowledge = "has the weights"

    resamples: int = 100

    @classmethod
    def quick(cls) -> ProposalAnswer:
        return cls(resamples=20)

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        states = DetectorStates.of(subject, context.judge)
        if states.proposals is None:
            return []
        logits, boxes = states.proposals
        found = average_precision(replace(states, boxes=boxes), logits, context.roles.forget, self.resamples)
        return [Measurement("AP", found.ap, found.low, found.high, facts={"AP50": found.ap50})]


@dataclass(frozen=True, kw_only=True)
class ClassAgnosticRecall(DetectorAttack):
    """The share of objects of the forgotten categories that a box covers, whatever the head says of it.

    A forgotten object that still gets a box of its own can be cut out and labelled by anything else. Class-agnostic
    recall measures proposals (https://arxiv.org/abs/1502.05082); here over all queries, at an overlap (IoU) of 0.5,
    and as the mean over 0.5 to 0.95.

    Attacker: sees boxes, also those of low confidence. Cost: one forward.
    """

    name = "class_agnostic_recall"
    title = "recall of any box"
    knowledge = "sees all boxes of an image"

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        overlaps = DetectorStates.of(subject, context.judge).best_overlaps(context.roles.forget)
        hits = {"IoU 0.5": overlaps >= 0.5, "IoU 0.5 to 0.95": (overlaps[:, None] >= _OVERLAPS).mean(1)}
        return [Measurement.of_hits(setting, shares[None]) for setting, shares in hits.items()]


@dataclass(frozen=True, kw_only=True)
class RetrainedClassHead(DetectorAttack):
    """A new last layer of the class head on the frozen states of the queries, trained on n or on all boxes.

    This is the linear probe of a detector: does the decoder still know the forgotten categories? Queries are matched
    with the annotations by the costs of their boxes alone; unmatched ones are background. The new layer, for all
    categories, minimises the detector's own class loss (softmax, focal or varifocal) on states that are standardised
    on the attacker's queries; AdamW, batches of 32 images, cosine schedule. Boxes stay as the detector gives them.
    Judged is AP@[.5:.95] of the forgotten categories; AP50 is a fact.

    With n boxes, as in few-shot detection by a new head (https://arxiv.org/abs/2003.06957), the attacker has n boxes
    of each forgotten category and, in their images, all boxes of the kept ones. Queries on further objects of the
    forgotten categories take no part.

    Attacker: has the weights and annotated images. Cost: one forward of the images, and a linear layer.

    Args:
        boxes (`tuple[int, ...]`, *optional*, defaults to `(4, 16)`):
            Boxes of each forgotten category, besides a head trained on all of them.
        draws (`int`, *optional*, defaults to 5):
            Draws of the boxes.
        steps (`int`, *optional*, defaults to 300):
            Steps of AdamW.
        learning_rate (`float`, *optional*, defaults to 0.01):
            Peak learning rate.
        weight_decay (`float`, *optional*, defaults to 0.1):
            Weight decay.
        limit (`int`, *optional*, defaults to 1000):
            Largest number of the attacker's images.
        resamples (`int`, *optional*, defaults to 100):
            Bootstrap samples of the images, for the interval with all boxes.
    """

    name = "class_head"
    title = "re-trained class head"
    knowledge = "has the weights, and annotated images"

    boxes: tuple[int, ...] = (4, 16)
    draws: int = 5
    steps: int = 300
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    limit: int = 1000
    resamples: int = 100

    @classmethod
    def quick(cls) -> RetrainedClassHead:
        return cls(boxes=(4,), draws=3, resamples=20)

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        train, test = (DetectorStates.of(subject, part) for part in (context.attacker, context.judge))
        forget = context.roles.forget
        measurements = []
        for count in self.boxes:
            drawn = [
                _drawn(train, forget, count, context.rng("class_head", count, draw)) for draw in range(self.draws)
            ]
            found = [average_precision(test, self._answers(train, test, known, forget), forget, 0) for known in drawn]
            values, facts = [one.ap for one in found], {"AP50": float(np.mean([one.ap50 for one in found]))}
            measurements.append(Measurement.of_values(f"{count} boxes", values, facts=facts))
        rng = context.rng("class_head")
        images = rng.permutation(len(train.labels))[: self.limit]
        known = {int(image): torch.ones(len(train.labels[image]["boxes"])).bool() for image in images}
        one = average_precision(test, self._answers(train, test, known, forget), forget, self.resamples)
        measurements.append(Measurement("all boxes", one.ap, one.low, one.high, facts={"AP50": one.ap50}))
        return measurements

    def _answers(
        self, train: DetectorStates, test: DetectorStates, known: dict[int, Tensor], forget: Sequence[int]
    ) -> Tensor:
        """The answers of a head that was trained on some images, with the annotations that the attacker knows."""
        criterion, images = train.criterion, list(known)
        batches = [
            self._batch(train, {image: known[image] for image in images[start : start + _IMAGES]})
            for start in range(0, len(images), _IMAGES)
        ]
        inputs = torch.cat([batch.logits for batch in batches])
        mean, scale = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
        head = nn.Linear(train.states.shape[2], train.logits.shape[2])
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 0.0 if criterion.is_softmax else -4.0)  # as rare as objects are
        optimizer = torch.optim.AdamW(head.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for step in range(self.steps):
            batch = batches[step % len(batches)]
            answers = replace(batch, logits=head((batch.logits - mean) / scale))
            optimizer.zero_grad()
            (criterion.class_sum(answers) / max(criterion.class_normaliser(answers), 1.0)).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = head((test.states - mean) / scale)
        if not test.criterion.is_softmax:
            # A query of a sigmoid head answers for every category, and the best answers of an image count.
            kept = [column for column in range(logits.shape[2]) if column not in forget]
            logits[..., kept] = -torch.inf
        return logits

    @staticmethod
    def _batch(train: DetectorStates, known: dict[int, Tensor]) -> Matched:
        images = list(known)
        labels = [train.labels[image] for image in images]
        return matched_by_boxes(
            train.criterion, train.states[images], train.boxes[images], labels, list(known.values())
        )


def _drawn(states: DetectorStates, forget: Sequence[int], count: int, rng: np.random.Generator) -> dict[int, Tensor]:
    """Draws images until each forgotten category has `count` boxes, or all where there are fewer.

    Returns:
        `dict[int, torch.Tensor]`: For each image, which of its annotations the attacker knows.
    """
    known: dict[int, Tensor] = {}
    for category in sorted(forget):
        missing = count
        for image in rng.permutation(len(states.labels)).tolist():
            classes = states.labels[image]["class_labels"]
            own = (classes == category).nonzero().flatten()[:missing]
            if not missing or not len(own):
                continue
            known.setdefault(image, ~torch.isin(classes, torch.tensor(forget)))[own] = True
            missing -= len(own)
    return known
