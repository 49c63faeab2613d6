"""Gradient ascent on what is to be forgotten, alone (gradient ascent) or beside training on the rest (NegGrad+)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import Number, check_fields
from ...objectives import ObjectiveOutput
from ...training import Method


@dataclass(kw_only=True)
class GradientAscent(Method):
    r"""Climbs the cross-entropy of the samples to forget, and looks at nothing else.

    Minimises −CE(D_f), as in https://arxiv.org/abs/2304.04934 (its "GA"). The loss has no bound: with too many steps
    or too large a learning rate, the classes to keep are lost, too. The learning rate decides; where 1e-4 does
    nothing, the authors of SalUn advise 5e-4 to 1e-3. Costs nothing more than the joint forward, whose half to keep
    has no effect. It has no hyper-parameters.

    Raises:
        InvalidInputError: At the first step, if the model is not a classifier.
    """

    name = "gradient_ascent"
    title = "gradient ascent, https://arxiv.org/abs/2304.04934"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-4,
        "num_train_epochs": 5,
        "weight_decay": 5e-4,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        return -F.cross_entropy(*self.forget_half(inputs, output))


@dataclass(kw_only=True)
class NegGradPlus(Method):
    r"""Descends on the samples to keep and climbs on those to forget, in every step.

    Minimises α·CE(D_r) − (1 − α)·CE(D_f): NegGrad+ of SCRUB (https://arxiv.org/abs/2302.09880). The second term has no
    bound, so that α is close to 1; the source chooses it for each experiment. The smaller set cycles, as there. Costs
    nothing more than the joint forward.

    Args:
        alpha (`float`, *optional*, defaults to 0.95):
            α, in [0, 1]: 0 is gradient ascent, 1 is fine-tuning on D_r.

    Raises:
        InvalidInputError: If `alpha` is out of range; at the first step, if the model is not a classifier.
    """

    name = "neggrad_plus"
    title = "NegGrad+, https://arxiv.org/abs/2302.09880"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.01,
        "num_train_epochs": 10,
        "weight_decay": 0.0,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.9, 0.95, 0.99)}

    alpha: Annotated[Number, Field(ge=0, le=1, description="a number in [0, 1]")] = 0.95

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        retain_loss = F.cross_entropy(*self.retain_half(inputs, output))
        forget_loss = F.cross_entropy(*self.forget_half(inputs, output))
        return self.alpha * retain_loss - (1 - self.alpha) * forget_loss
