"""Leaving the adapters off, which is not an attack but a property of files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Attack, AuditContext, Measurement
from ..subjects import LOGITS, Subject


@dataclass(frozen=True, kw_only=True)
class AdapterRemoval(Attack):
    """Leaves off the adapters that forget: the original model answers, with everything that it knew.

    This follows from the files, so it is shown and not judged. It says why a forgotten model may only be shared
    merged: an adapter beside its base model does not take anything away. The figure of the forgotten model is that of
    the original; a model without an adapter has its own.

    Attacker: has the base model and the adapters apart. Cost: none.
    """

    name = "adapter_removal"
    title = "the adapters left off"
    knowledge = "has the base model and the adapters apart"
    judged = "shown"

    def run(self, subject: Subject, context: AuditContext) -> list[Measurement]:
        left = context.original if subject.kind == "forgotten" else subject
        chosen = context.judge.of(context.roles.forget)
        predicted = left.states(context.judge)[LOGITS][chosen].argmax(1)
        return [Measurement.of_hits("all classes", np.equal(predicted, context.judge.labels[chosen])[None])]
