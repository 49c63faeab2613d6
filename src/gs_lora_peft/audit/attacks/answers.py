"""What the head answers, as it is and with an offset added to its logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..base import Attack, AuditContext, Measurement
from ..subjects import LOGITS, Subject


@dataclass(frozen=True, kw_only=True)
class Answer(Attack):
    """The accuracy of the head on samples of the forgotten classes: Acc_f, which every paper reports.

    Attacker: only asks. Cost: one forward.
    """

    name = "answer"
    title = "the head's answer"
    knowledge = "may ask the model"

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        chosen = context.judge.of(context.roles.forget)
        predicted = subject.states(context.judge)[LOGITS][chosen].argmax(1)
        return [Measurement.of_hits("all classes", (predicted == context.judge.labels[chosen])[None])]


@dataclass(frozen=True, kw_only=True)
class LogitOffset(Attack):
    """One number for each class is added to its logit, and fitted on labelled samples.

    The offsets minimise the cross-entropy on the attacker's samples, with all classes of equal weight; L-BFGS. A head
    whose biases alone were changed is recovered completely. This is the bias correction of class-incremental learning
    (https://arxiv.org/abs/1905.13260), turned against forgetting.

    Attacker: sees logits, has labelled samples of all classes. Cost: one forward of the samples.

    Args:
        steps (`int`, *optional*, defaults to 100):
            Iterations of L-BFGS.
    """

    name = "logit_offset"
    title = "offsets added to the logits"
    knowledge = "sees logits, has labelled samples of all classes"

    steps: int = 100

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        logits = torch.from_numpy(subject.states(context.attacker)[LOGITS]).double()
        labels = torch.from_numpy(context.attacker.labels)
        known = (labels[:, None] == torch.arange(logits.shape[1])).any(0)
        weight = known / torch.bincount(labels, minlength=logits.shape[1]).clamp(min=1)
        offsets = torch.zeros(logits.shape[1], dtype=logits.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS([offsets], max_iter=self.steps, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(logits + offsets, labels, weight.to(logits.dtype))
            loss.backward()
            return loss

        optimizer.step(closure)
        chosen = context.judge.of(context.roles.forget)
        predicted = (subject.states(context.judge)[LOGITS][chosen] + offsets.detach().numpy()).argmax(1)
        hits = np.equal(predicted, context.judge.labels[chosen])
        return [Measurement.of_hits("fitted on all classes", hits[None])]
