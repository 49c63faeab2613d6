"""DELETE: distillation from the earlier model, whose own class is masked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...objectives import ObjectiveOutput
from ...training import Method


@dataclass(kw_only=True)
class Delete(Method):
    r"""Gives the samples to forget the answer of the earlier model, had it not known their class.

    Minimises the mean over D_f of KL(p̃ ‖ p), with p the probabilities of the model, and p̃ those of the model before
    the task after the logit of the sample's own class is set to −∞ (https://arxiv.org/abs/2503.23751, CVPR 2025). The
    relations between the other classes are kept ("decoupled distillation"), so that it needs no samples to keep. Of
    several classes to forget, only the own one is masked, as there. Costs one forward over the half to forget more;
    the half to keep has no effect. It has no hyper-parameters.

    Raises:
        InvalidInputError: At the first step, if the model is not a classifier.
    """

    name = "delete"
    title = "DELETE, https://arxiv.org/abs/2503.23751"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 5e-5,
        "num_train_epochs": 20,
        "weight_decay": 0.0,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "constant",
    }

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        logits, labels = self.forget_half(inputs, output)
        teacher = self.earlier_logits(model, inputs, "forget").scatter(1, labels[:, None], -math.inf)
        return F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean")
