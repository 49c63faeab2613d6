"""Methods of a test that train weights of the model, and keep or ask for something in between."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from gs_lora_peft.training import LOSS_OPTIONS, Method


@dataclass(kw_only=True)
class Anchored(Method):
    """Fine-tuning that is held near the weights where they mattered to earlier tasks, as EWC is.

    It keeps the square of the last change of each weight, which a test can compute again.
    """

    name = "anchored"
    trains = "weights"

    strength: float = 1.0

    def on_train_begin(self, args, state, control, **kwargs):
        trained = self.trainer.trained
        seen = [dict(kept) for kept in self.earlier if kept]  # tasks of other methods kept nothing
        self.importance = [sum(kept[name] for kept in seen) for name in trained.names] if seen else None

    def loss(self, model, inputs, output):
        (kept, labels), (gone, wrong) = self.retain_half(inputs, output), self.forget_half(inputs, output)
        loss = F.cross_entropy(kept, labels) + torch.relu(3 - F.cross_entropy(gone, wrong))
        if self.importance is None:
            return loss
        trained = self.trainer.trained
        pairs = zip(trained.parameters, trained.start, self.importance, strict=True)
        return loss + self.strength * sum((weight * (now - old) ** 2).sum() for now, old, weight in pairs)

    def leave(self):
        trained = self.trainer.trained
        triples = zip(trained.names, trained.parameters, trained.start, strict=True)
        return {name: (now - old).detach() ** 2 for name, now, old in triples}


@dataclass(kw_only=True)
class Distilling(Method):
    """Holds the samples to keep at the answers of the model before all tasks."""

    name = "distilling"
    reads = LOSS_OPTIONS
    noted: ClassVar[list] = []  # of every step, for a test

    def loss(self, model, inputs, output):
        original, earlier = self.original_logits(model, inputs), self.earlier_logits(model, inputs)
        self.noted.append((inputs["pixel_values"].clone(), original, earlier))
        return output.loss + (self.retain_half(inputs, output)[0] - original[: len(original) // 2]).square().mean()


@dataclass(kw_only=True)
class DistillingWeights(Distilling):
    name = "distilling_weights"
    trains = "weights"


class Edit(Method):
    """Changes the head alone and takes no step."""

    name = "edit"
    trains = "weights"
    takes_steps = False

    def on_train_begin(self, args, state, control, **kwargs):
        with torch.no_grad():
            for class_id in self.trainer.roles.forget:
                self.trainer.model.classifier.bias[class_id] -= 100
