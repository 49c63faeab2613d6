"""Loss terms as functions of tensors, which the objectives put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidInputError

ForgetLoss = Literal["log_odds", "cross_entropy"]

PrototypeDistance = Literal["kl", "cosine", "l2"]

DepthTarget = Literal["sample", "mean", "transport"]

GlobalMean = Callable[[Tensor], Tensor]


def identity(tensor: Tensor) -> Tensor:
    """Returns the tensor itself: the mean, or the sum, over a single process."""
    return tensor


def auto_forget_bound(num_classes: int, kind: ForgetLoss = "log_odds") -> float:
    r"""A bound BND that suits a plain softmax head of C classes.

    A sample with p(true class) < 1/C is certainly misclassified, because another class is more probable. Its log-odds
    against its class then exceed ln(C − 1). Its cross-entropy exceeds ln C, the value of a head that knows nothing.
    Samples that are not trained on lag behind those that are. The bound therefore is higher: 1.5 · ln C where every
    sample is held to it. A bound on the *mean* must also leave room for samples below the mean: 5 · ln C, which costs
    the kept classes more. Both factors were measured on the Yale faces (docs/experiments/faces.md). The papers' 105
    belongs to CosFace with s = 64.

    Args:
        num_classes (`int`):
            C, size of the head, at least 2.
        kind (`"log_odds"` or `"cross_entropy"`, *optional*, defaults to `"log_odds"`):
            What is bounded.

    Returns:
        `float`: BND in nats.

    Raises:
        InvalidInputError: If `num_classes` is below 2.
    """
    if num_classes < 2:
        raise InvalidInputError(
            "num_classes",
            num_classes,
            "at least 2, because a classifier keeps one class while it forgets another",
            "Set `forget_bound` to a number if the head is not a softmax over classes.",
        )
    return (1.5 if kind == "log_odds" else 5.0) * math.log(num_classes)


def log_odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    r"""log((1 − p) / p) of each sample's class: how far its logit lies below those of all other classes together.

    Equals the cross-entropy −log p where p is small. Where the head is sure (p ≈ 1), the slope of cross-entropy
    vanishes with 1 − p, so that forgetting cannot start. Here the slope is 1 everywhere.

    Args:
        logits (`torch.Tensor`):
            Shape `(B, C)`, C ≥ 2.
        labels (`torch.Tensor`):
            int64, shape `(B,)`.

    Returns:
        `torch.Tensor`: Shape `(B,)`, in nats; negative where the class is more probable than all others together.
    """
    index = labels[:, None]
    others = logits.scatter(1, index, -math.inf).logsumexp(1)
    return others - logits.gather(1, index).squeeze(1)


def hinge(value: Tensor, bound: float, mean: Tensor) -> Tensor:
    """Returns ReLU(bound − value), closed in every process as soon as the mean over all of them reaches the bound.

    NaN stays NaN.

    Args:
        value (`torch.Tensor`):
            Scalar of this process, with gradient.
        bound (`float`):
            The bound.
        mean (`torch.Tensor`):
            Mean of `value` over all processes.

    Returns:
        `torch.Tensor`: Scalar; its mean over processes is ReLU(bound − mean).
    """
    return torch.where(mean >= bound, torch.zeros_like(value), bound - value)


def bounded_cross_entropy(losses: Tensor, bound: float, global_mean: GlobalMean = identity) -> Tensor:
    """ReLU(BND − mean CE), the forgetting term of GS-LoRA as published (eq. 4), with the mean over all processes.

    Every process opens or closes the ReLU by the same, global mean. Otherwise the mean over processes would not be the
    loss of the joint batch.

    Args:
        losses (`torch.Tensor`):
            Shape `(B,)`, cross-entropies of this process's forget half, with gradient.
        bound (`float`):
            BND.
        global_mean (`Callable`, *optional*):
            Averages a tensor over processes; identity by default.

    Returns:
        `torch.Tensor`: Scalar; its mean over processes is ReLU(BND − global mean).
    """
    mean = losses.mean()
    return hinge(mean, bound, global_mean(mean.detach()))


def embedding_distances(embeddings: Tensor, prototypes: Tensor, kind: PrototypeDistance = "kl") -> Tensor:
    """The distance of each embedding from a prototype.

    Args:
        embeddings (`torch.Tensor`):
            Shape `(B, width)`.
        prototypes (`torch.Tensor`):
            The same shape.
        kind (`"kl"`, `"cosine"` or `"l2"`, *optional*, defaults to `"kl"`):
            `"kl"` is KL(softmax(prototype) ‖ softmax(embedding)) in nats, as published (its mean is `F.kl_div` of
            log-softmaxes with `batchmean` and `log_target`); `"cosine"` 1 − cos, in [0, 2]; `"l2"` the Euclidean
            distance.

    Returns:
        `torch.Tensor`: Shape `(B,)`, not negative.
    """
    if kind == "cosine":
        return 1 - F.cosine_similarity(embeddings, prototypes)
    if kind == "l2":
        return torch.linalg.vector_norm(embeddings - prototypes, dim=1)
    log_p, log_q = prototypes.log_softmax(1), embeddings.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def distillation_loss(logits: Tensor, earlier: Tensor, excluded_classes: Sequence[int] = ()) -> Tensor:
    """Mean KL(p_before ‖ p_now) over all classes but the excluded ones.

    Args:
        logits (`torch.Tensor`):
            Shape `(B, C)`, with gradient.
        earlier (`torch.Tensor`):
            Logits of the model before the task, of the same shape.
        excluded_classes (`Sequence[int]`, *optional*, defaults to none):
            Classes that both probabilities are conditioned on not being; fewer than C.

    Returns:
        `torch.Tensor`: Scalar in nats, not negative. A class that the model rules out (logit −∞) adds 0.
    """
    stays = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    stays[list(excluded_classes)] = False
    now, before = (x[:, stays].float().log_softmax(1) for x in (logits, earlier))
    # 0 for a class that is ruled out, not 0 · (-inf + inf).
    difference = (before - now).masked_fill(before == -math.inf, 0.0)
    return (before.exp() * difference).sum(1).mean()
