"""MUNBa: the weights of keeping and forgetting are bargained anew at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import check_fields
from ...objectives import ObjectiveOutput
from ...training import Method

# At 1 + cos = 0 the two gradients are opposite, and no step serves both: the weights have no finite value.
_SMALLEST = 1e-3


@dataclass(kw_only=True)
class MUNBa(Method):
    r"""Lets keeping and forgetting bargain about every step: each gains as much as the other.

    Minimises a_r · CE(retain half, y) + a_f · CE(forget half, ŷ) with ŷ drawn anew from the classes to keep. The Nash
    bargaining solution for the gradients g_r and g_f of the two terms, which maximises log ⟨g, g_r⟩ + log ⟨g, g_f⟩
    over steps g of bounded length, has

    $$a_r = \frac{1}{\lVert g_r\rVert \sqrt{1 + \cos(g_r, g_f)}}, \qquad
      a_f = \frac{1}{\lVert g_f\rVert \sqrt{1 + \cos(g_r, g_f)}}$$

    MUNBa, ICCV 2025, https://arxiv.org/abs/2411.15537, here in the form without a division by ⟨g_r, g_f⟩, which is
    unstable where the gradients are orthogonal. 1 + cos counts as 0.001 at least. The weights change the size of the
    gradient as well as its direction, so `max_grad_norm` acts like a step size.

    Costs two backward passes through the joint batch in place of one, and two averages of all gradients over several
    processes. Does not work with reentrant activation checkpoints, through which no separate gradient can be taken.

    Args:
        official_compat (`bool`, *optional*, defaults to `False`):
            As in the public code: its closed form with 1e-8 in the denominators, the weights 1 and 0.1 where one of
            them is not positive, and ŷ from all classes of the head.

    Raises:
        InvalidInputError: At the first step, if the model is not a classifier.
    """

    name = "munba"
    title = "MUNBa, https://arxiv.org/abs/2411.15537"
    published: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-2,
        "num_train_epochs": 10,
        "optim": "sgd",
        "max_grad_norm": 1.0,
    }
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"max_grad_norm": (0.1, 1.0, 10.0)}

    official_compat: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        (kept, labels), (gone, _) = self.retain_half(inputs, output), self.forget_half(inputs, output)
        losses = F.cross_entropy(kept, labels), F.cross_entropy(gone, self._drawn(gone))
        weights = [weight for weight in self.trainer.trained.parameters if weight.requires_grad]
        retain, forget = (self._gradient(loss, weights) for loss in losses)
        bargain = official_bargain if self.official_compat else nash_bargain
        a_retain, a_forget = bargain(retain, forget)
        value = a_retain * losses[0].detach() + a_forget * losses[1].detach()
        # Has this value, and the bargained gradient without a third pass through the model.
        direction = (a_retain * retain + a_forget * forget).split([weight.numel() for weight in weights])
        pairs = zip(direction, weights, strict=True)
        slope = torch.stack([(part.view_as(weight) * weight.float()).sum() for part, weight in pairs]).sum()
        return value + (slope - slope.detach())

    def _drawn(self, logits: Tensor) -> Tensor:
        """Wrong labels. On the CPU, whose generator every checkpoint holds."""
        classes = torch.tensor(range(logits.shape[1]) if self.official_compat else self.trainer.roles.retain)
        return classes[torch.randint(len(classes), (len(logits),))].to(logits.device)

    def _gradient(self, loss: Tensor, weights: list[nn.Parameter]) -> Tensor:
        """The gradient in one vector, float32, the mean over processes: the bargain is about the joint batch."""
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, weights, strict=True)
        flat = torch.cat([(torch.zeros_like(w) if g is None else g).float().flatten() for g, w in pairs])
        return self.trainer.global_mean(flat)


def nash_bargain(retain: Tensor, forget: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a_r and a_f, scalars without gradient.

    Args:
        retain (`torch.Tensor`):
            g_r, a vector.
        forget (`torch.Tensor`):
            g_f, a vector of the same length.
    """
    norms = [torch.linalg.vector_norm(one).clamp(min=1e-8) for one in (retain, forget)]
    cosine = (retain @ forget) / (norms[0] * norms[1])
    root = (1 + cosine).clamp(min=_SMALLEST).sqrt()
    return 1 / (norms[0] * root), 1 / (norms[1] * root)


def official_bargain(retain: Tensor, forget: Tensor) -> tuple[Tensor, Tensor]:
    """As [`nash_bargain`], in the form of the public code."""
    rr, rf, ff = retain @ retain, retain @ forget, forget @ forget
    a_retain = ((rr * ff - rf * (rr * ff).sqrt()) / (rr * rr * ff - rr * rf * rf + 1e-8)).sqrt()
    a_forget = (1 - rr * a_retain.square()) / (rf * a_retain + 1e-8)
    agreed = (a_retain > 0) & (a_forget > 0)
    return torch.where(agreed, a_retain, 1.0), torch.where(agreed, a_forget, 0.1)
