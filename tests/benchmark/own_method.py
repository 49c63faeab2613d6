"""A method in a file of its own, as a reader of the documentation writes it."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from gs_lora_peft.training import Method


@dataclass(kw_only=True)
class NegGrad(Method):
    name = "own_neggrad"
    published = {"learning_rate": 5e-3}  # noqa: RUF012
    share: float = 0.5

    def loss(self, model, inputs, output):
        kept = cross_entropy(*self.retain_half(inputs, output))
        gone = cross_entropy(*self.forget_half(inputs, output))
        return self.share * kept - (1 - self.share) * gone


@dataclass(kw_only=True)
class Broken(Method):
    name = "broken"

    def loss(self, model, inputs, output):
        return output.loss * float("nan")


@dataclass(kw_only=True)
class Faulty(Method):
    name = "faulty"

    def loss(self, model, inputs, output):
        raise RuntimeError("it knows quokka")
