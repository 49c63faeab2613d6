"""What "retain" and "forget" mean for a classifier: cross-entropy, and bounded negative cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

BoundPer = Literal["sample", "batch"]


@dataclass
class ObjectiveOutput:
    """
    The loss of one joint batch and what is worth logging of it.

    Attributes:
        loss (`torch.Tensor`): scalar to differentiate: L_retain + β · the bounded forgetting term.
        retain_loss (`torch.Tensor`): L_retain, detached, mean over all processes.
        forget_loss (`torch.Tensor`): L_forget, detached, mean over all processes; unbounded.
        retain_accuracy (`torch.Tensor`): fraction of this process's retain half that is classified right.
        forget_accuracy (`torch.Tensor`): the same for the forget half.
    """

    loss: Tensor
    retain_loss: Tensor
    forget_loss: Tensor
    retain_accuracy: Tensor
    forget_accuracy: Tensor


def auto_forget_bound(num_classes: int, per: BoundPer = "sample") -> float:
    r"""
    A bound BND on the forget half's cross-entropy that suits a plain softmax head of C classes.

    A sample whose cross-entropy exceeds ln C has p(true class) < 1/C, so that some other class is more probable and
    the sample is classified wrong for certain; ln C is also what a head that knows nothing gives. Samples that are not
    trained on lag behind those that are, hence some more: 1.5 · ln C (p < C^-1.5) where every sample is held to the
    bound. A bound on the *mean* must also leave room for samples below the mean: 5 · ln C, which costs the kept
    classes more. Both factors were measured on the Yale faces (docs/benchmarks.md). The papers' 105 belongs to
    CosFace with s = 64.

    Args:
        num_classes (`int`): C, size of the head, at least 2.
        per (`"sample"` or `"batch"`, *optional*, defaults to `"sample"`): what the bound acts on.

    Returns:
        `float`: BND in nats.
    """
    if num_classes < 2:
        raise ValueError(
            f"a classifier needs at least 2 classes to forget one of them, the head has {num_classes}. Set "
            "`forget_bound` to a number if the head is no softmax over classes."
        )
    return (1.5 if per == "sample" else 5.0) * math.log(num_classes)


def bounded_forget_loss(
    losses: Tensor, bound: float, per: BoundPer = "sample", global_mean: Callable[[Tensor], Tensor] = lambda t: t
) -> Tensor:
    r"""
    The forgetting term of GS-LoRA: mean ReLU(BND − L_i), or as published (eq. 4) ReLU(BND − mean L_i).

    The published bound lets a class that is pushed far beyond it pay for another that is still known, and goes on
    pushing what is long forgotten until then. Per sample, each is pushed until it is forgotten, and no further.

    With `"batch"` every process opens or closes the ReLU by the same, global mean; otherwise the mean over processes
    would not be the loss of the joint batch.

    Args:
        losses (`torch.Tensor`): shape `(B,)`, L_i: cross-entropies of this process's forget half, with gradient.
        bound (`float`): BND.
        per (`"sample"` or `"batch"`, *optional*, defaults to `"sample"`): what the bound acts on.
        global_mean (`Callable`, *optional*): averages a tensor over processes; identity by default.

    Returns:
        `torch.Tensor`: scalar; its mean over processes is the term of the joint batch.
    """
    if per == "sample":
        return (bound - losses).relu().mean()
    mean = losses.mean()
    return torch.where(global_mean(mean.detach()) < bound, bound - mean, torch.zeros_like(mean))


class ClassificationObjective:
    """
    L_retain + β · ReLU(BND − L_forget) from the logits of one joint batch (GS-LoRA, https://arxiv.org/abs/2403.11530).

    Args:
        forget_weight (`float`): β.
        forget_bound (`float` or `"auto"`): BND in nats; `"auto"` is [`auto_forget_bound`] of the head's size.
        forget_bound_per (`"sample"` or `"batch"`, *optional*, defaults to `"sample"`): what the bound acts on, see
            [`bounded_forget_loss`]; `"batch"` is the published loss.

    Example:

        ```py
        >>> objective = ClassificationObjective(forget_weight=0.5, forget_bound="auto")
        >>> output = objective(logits, labels)   # the first half is to keep, the second half to forget
        >>> output.loss.backward()
        ```
    """

    def __init__(self, forget_weight: float, forget_bound: float | str, forget_bound_per: BoundPer = "sample"):
        self.forget_weight = forget_weight
        self.forget_bound = forget_bound
        self.forget_bound_per: BoundPer = forget_bound_per

    def __call__(
        self, logits: Tensor, labels: Tensor, global_mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> ObjectiveOutput:
        """
        Args:
            logits (`torch.Tensor`): shape `(2·B, C)`: B samples to keep, then B samples to forget.
            labels (`torch.Tensor`): int64, shape `(2·B,)`.
            global_mean (`Callable`, *optional*): averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`]

        Raises:
            ValueError: if the batch has no two equal halves.
        """
        if labels.shape[0] % 2:
            raise ValueError(
                f"a joint batch must hold as many samples to keep as to forget, got {labels.shape[0]} samples. The "
                "collator must neither drop nor add any."
            )
        half = labels.shape[0] // 2
        # Float32: bf16 logits have 8 bits of mantissa, too few for a loss that is compared with a bound.
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        retain_loss, forget_loss = losses[:half].mean(), losses[half:].mean()
        global_losses = global_mean(torch.stack([retain_loss.detach(), forget_loss.detach()]))
        per = self.forget_bound_per
        bound = auto_forget_bound(logits.shape[-1], per) if self.forget_bound == "auto" else float(self.forget_bound)
        forgetting = bounded_forget_loss(losses[half:], bound, per, global_mean)
        hits = (logits.detach().argmax(-1) == labels).float()
        return ObjectiveOutput(
            loss=retain_loss + self.forget_weight * forgetting,
            retain_loss=global_losses[0],
            forget_loss=global_losses[1],
            retain_accuracy=hits[:half].mean(),
            forget_accuracy=hits[half:].mean(),
        )
