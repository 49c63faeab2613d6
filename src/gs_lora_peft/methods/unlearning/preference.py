"""NPO and SimNPO: samples to forget as answers that nobody prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import NotNegative, Number, check_fields
from ...objectives import ObjectiveOutput
from ...training import Method

_Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]


@dataclass(kw_only=True)
class NPO(Method):
    r"""Makes the true class of the samples to forget less probable than it was, the slower the further it has fallen.

    Minimises γ·(2/β)·mean over D_f of log(1 + (π/π_ref)^β) + CE(D_r): negative preference optimisation
    (https://arxiv.org/abs/2404.05868) for a classifier, whose answer is one class instead of a sequence. π is the
    probability of the true class, π_ref that of the model before the task. Its gradient is that of gradient ascent
    times 2·π^β/(π^β + π_ref^β), so that it stops by itself; β → 0 is gradient ascent. Defaults and rates are those of
    language models (open-unlearning). Costs one forward over the half to forget more.

    Args:
        beta (`float`, *optional*, defaults to 0.1):
            β, above 0.
        forget_weight (`float`, *optional*, defaults to 1.0):
            γ, at least 0.

    Raises:
        InvalidInputError: If a value is out of range; at the first step, if the model is not a classifier.
    """

    name = "npo"
    title = "NPO, https://arxiv.org/abs/2404.05868"
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "num_train_epochs": 10, "weight_decay": 0.01}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"beta": (0.1, 0.5, 1.0), "forget_weight": (0.1, 0.3, 1.0)}

    beta: _Positive = 0.1
    forget_weight: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        forgetting = -2 / self.beta * F.logsigmoid(self._margins(model, inputs, output)).mean()
        return F.cross_entropy(*self.retain_half(inputs, output)) + self.forget_weight * forgetting

    def _margins(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        """−β·log(π/π_ref) of each sample to forget, shape `(B,)`."""
        logits, labels = self.forget_half(inputs, output)
        before = F.cross_entropy(self.earlier_logits(model, inputs, "forget"), labels, reduction="none")
        return self.beta * (F.cross_entropy(logits, labels, reduction="none") - before)


@dataclass(kw_only=True)
class SimNPO(NPO):
    r"""NPO without the model before the task: every sample is pushed by how well it is known now.

    Minimises −γ·(2/β)·mean over D_f of log σ(−β·log π − δ) + CE(D_r) (https://arxiv.org/abs/2410.07163). Samples that
    the earlier model knew well are not spared, as NPO spares them. Costs nothing more than the joint forward.

    Args:
        beta (`float`, *optional*, defaults to 4.5):
            β, above 0.
        forget_weight (`float`, *optional*, defaults to 0.125):
            γ, at least 0.
        delta (`float`, *optional*, defaults to 0.0):
            δ, the margin that −β·log π has to exceed.
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether β multiplies the margin, too: log σ(β·(−log π − δ)), as in the public code.

    Raises:
        InvalidInputError: If a value is out of range; at the first step, if the model is not a classifier.
    """

    name = "simnpo"
    title = "SimNPO, https://arxiv.org/abs/2410.07163"
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"beta": (1.0, 2.5, 4.5), "forget_weight": (0.125, 0.5, 1.0)}

    beta: _Positive = 4.5
    forget_weight: NotNegative = 0.125
    delta: Number = 0.0
    official_compat: bool = False

    def _margins(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        losses = F.cross_entropy(*self.forget_half(inputs, output), reduction="none")
        return self.beta * losses - (self.beta * self.delta if self.official_compat else self.delta)
