"""What "retain" and "forget" mean for a classifier: cross-entropy, and bounded negative cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class ObjectiveOutput:
    """
    The loss of one joint batch and what is worth logging of it.

    Attributes:
        loss (`torch.Tensor`): scalar to differentiate: L_retain + β · ReLU(BND − L_forget).
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


def auto_forget_bound(num_classes: int) -> float:
    r"""
    A bound BND on the forget half's cross-entropy that suits a plain softmax head of C classes: 5 · ln C.

    A sample whose cross-entropy exceeds ln C has p(true class) < 1/C, so that some other class is more probable and
    the sample is classified wrong for certain; ln C is also what a head that knows nothing gives. The bound acts on
    the *mean* over samples that are trained on, so it must leave room for samples below the mean and for samples that
    are not trained on, which lag behind. How much was measured over four requests on the Yale faces: with 3 · ln C up
    to 13 % accuracy on forgotten people was left, with 5 · ln C none, at the same accuracy on the kept ones to within
    two points (docs/benchmarks.md). The papers' 105 belongs to CosFace with s = 64.

    Args:
        num_classes (`int`): C, size of the head, at least 2.

    Returns:
        `float`: BND in nats.
    """
    if num_classes < 2:
        raise ValueError(
            f"a classifier needs at least 2 classes to forget one of them, the head has {num_classes}. Set "
            "`forget_bound` to a number if the head is no softmax over classes."
        )
    return 5.0 * math.log(num_classes)


def bounded_forget_loss(forget_loss: Tensor, bound: float, global_forget_loss: Tensor) -> Tensor:
    """
    ReLU(BND − L_forget), the forgetting term of GS-LoRA (eq. 4), with the mean taken over all processes.

    Every process opens or closes the ReLU by the same, global mean; otherwise the sum over processes would not be the
    loss of the joint batch.

    Args:
        forget_loss (`torch.Tensor`): scalar, mean cross-entropy of this process's forget half, with gradient.
        bound (`float`): BND.
        global_forget_loss (`torch.Tensor`): scalar, detached mean of `forget_loss` over all processes.

    Returns:
        `torch.Tensor`: scalar; its mean over processes is ReLU(BND − global mean).
    """
    return torch.where(global_forget_loss < bound, bound - forget_loss, torch.zeros_like(forget_loss))


class ClassificationObjective:
    """
    L_retain + β · ReLU(BND − L_forget) from the logits of one joint batch (GS-LoRA, https://arxiv.org/abs/2403.11530).

    Args:
        forget_weight (`float`): β.
        forget_bound (`float` or `"auto"`): BND in nats; `"auto"` is [`auto_forget_bound`] of the head's size.

    Example:

        ```py
        >>> objective = ClassificationObjective(forget_weight=0.5, forget_bound="auto")
        >>> output = objective(logits, labels)   # the first half is to keep, the second half to forget
        >>> output.loss.backward()
        ```
    """

    def __init__(self, forget_weight: float, forget_bound: float | str):
        self.forget_weight = forget_weight
        self.forget_bound = forget_bound

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
        bound = auto_forget_bound(logits.shape[-1]) if self.forget_bound == "auto" else float(self.forget_bound)
        forgetting = bounded_forget_loss(forget_loss, bound, global_losses[1])
        hits = (logits.detach().argmax(-1) == labels).float()
        return ObjectiveOutput(
            loss=retain_loss + self.forget_weight * forgetting,
            retain_loss=global_losses[0],
            forget_loss=global_losses[1],
            retain_accuracy=hits[:half].mean(),
            forget_accuracy=hits[half:].mean(),
        )
