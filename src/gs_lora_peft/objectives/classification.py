"""What "retain" and "forget" mean for a classifier: cross-entropy, and its bounded opposite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import bare, unwrapped
from ..errors import InvalidInputError
from .base import GlobalMean, Objective, ObjectiveOutput, identity

ForgetLoss = Literal["log_odds", "cross_entropy"]


def auto_forget_bound(num_classes: int, kind: ForgetLoss = "log_odds") -> float:
    r"""
    A bound BND that suits a plain softmax head of C classes.

    A sample with p(true class) < 1/C is classified wrong for certain, because some other class is more probable. Its
    log-odds against that class exceed ln(C − 1), its cross-entropy ln C, which is also what a head that knows nothing
    gives. Samples that are not trained on lag behind those that are, hence some more: 1.5 · ln C where every sample is
    held to the bound. A bound on the *mean* must also leave room for samples below the mean: 5 · ln C, which costs the
    kept classes more. Both factors were measured on the Yale faces (docs/benchmarks.md). The papers' 105 belongs to
    CosFace with s = 64.

    Args:
        num_classes (`int`):
            C, size of the head, at least 2.
        kind (`"log_odds"` or `"cross_entropy"`, *optional*, defaults to `"log_odds"`):
            What is bounded.

    Returns:
        `float`: BND in nats.
    """
    if num_classes < 2:
        raise InvalidInputError(
            "num_classes",
            num_classes,
            "at least 2, because a classifier keeps one while it forgets another",
            "Set `forget_bound` to a number if the head is not a softmax over classes.",
        )
    return (1.5 if kind == "log_odds" else 5.0) * math.log(num_classes)


def log_odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    r"""
    log((1 − p) / p) of each sample's class: how far its logit lies below those of all other classes together.

    Equals the cross-entropy −log p where p is small. Where the head is sure (p ≈ 1), the slope of cross-entropy
    vanishes with 1 − p, so that it cannot start to forget; here the slope is 1 everywhere.

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


def bounded_cross_entropy(losses: Tensor, bound: float, global_mean: GlobalMean = identity) -> Tensor:
    """
    ReLU(BND − mean CE), the forgetting term of GS-LoRA as published (eq. 4), with the mean taken over all processes.

    Every process opens or closes the ReLU by the same, global mean; otherwise the mean over processes would not be the
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
    return torch.where(global_mean(mean.detach()) < bound, bound - mean, torch.zeros_like(mean))


class ClassificationObjective(Objective):
    r"""
    L_retain + β · a bounded forgetting term, from the logits of one joint batch.

    L_retain is the mean cross-entropy of the half to keep. The forgetting term is one of

    - `"log_odds"`: the mean over the forget half of ReLU(BND − log((1 − p_i) / p_i)), with [`log_odds_against`]. Each
      sample is pushed until it is forgotten, however sure the head is of it, and no further.
    - `"cross_entropy"`: ReLU(BND − mean CE), as published (GS-LoRA, https://arxiv.org/abs/2403.11530, eq. 4). A class
      that is pushed far beyond the bound can then hide another one that is still known.

    A head with a loss of its own (SFace) is trained by the cross-entropy of its logits like every other.

    Classes to keep that have no training data take no part in either: as the wrong answer to every sample, with none
    that speaks for them, they would be forgotten on the way. What holds them is [`DistillationObjective`].

    Args:
        forget_weight (`float`):
            β.
        forget_bound (`float` or `"auto"`):
            BND in nats; `"auto"` is [`auto_forget_bound`] of the head's size.
        kind (`"log_odds"` or `"cross_entropy"`, *optional*, defaults to `"log_odds"`):
            The forgetting term.
        missing_classes (`Sequence[int]`, *optional*, defaults to none):
            Classes to keep without training data.

    Example:
        ```py
        >>> objective = ClassificationObjective(forget_weight=0.5, forget_bound="auto")
        >>> output = objective(logits, labels)   # the first half is to keep, the second half to forget
        >>> output.loss.backward()
        ```
    """

    def __init__(
        self,
        forget_weight: float,
        forget_bound: float | str,
        kind: ForgetLoss = "log_odds",
        missing_classes: Sequence[int] = (),
    ):
        self.forget_weight = forget_weight
        self.forget_bound = forget_bound
        self.kind: ForgetLoss = kind
        self.missing_classes = list(missing_classes)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        logits, labels = logits_of(model, inputs), inputs["labels"]
        output = self(_with_margin(model, logits, labels, len(labels) // 2), labels, global_mean)
        output.logits, output.outputs = logits, {"logits": logits}
        return output

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        logits, labels = logits_of(model, inputs), inputs["labels"]
        logits = _with_margin(model, logits, labels, len(labels))
        return _cross_entropy(logits.float(), labels, "mean"), {"logits": logits}

    def __call__(self, logits: Tensor, labels: Tensor, global_mean: GlobalMean = identity) -> ObjectiveOutput:
        """
        Args:
            logits (`torch.Tensor`):
                Shape `(2·B, C)`: B samples to keep, then B samples to forget.
            labels (`torch.Tensor`):
                int64, shape `(2·B,)`.
            global_mean (`Callable`, *optional*):
                Averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`] with the metrics `retain_accuracy` and `forget_accuracy`: Fractions of this process's.
            halves that are classified right.

        Raises:
            InvalidInputError: If the batch has no two equal halves.
        """
        if labels.shape[0] % 2:
            expected = "an even number, as many samples to keep as to forget"
            fix = "The collator must neither drop nor add any."
            raise InvalidInputError("the size of a joint batch", labels.shape[0], expected, fix)
        half = labels.shape[0] // 2
        # Float32: bf16 logits have 8 bits of mantissa, too few for a loss that is compared with a bound.
        logits = logits.float()
        hits = (logits.detach().argmax(-1) == labels).float()
        if self.missing_classes:
            logits = logits.index_fill(1, torch.tensor(self.missing_classes, device=logits.device), -math.inf)
        losses = _cross_entropy(logits, labels, "none")
        retain_loss, forget_loss = losses[:half].mean(), losses[half:].mean()
        global_losses = global_mean(torch.stack([retain_loss.detach(), forget_loss.detach()]))
        # The bound depends on the whole head, because predictions use the whole head.
        automatic = self.forget_bound == "auto"
        bound = auto_forget_bound(logits.shape[-1], self.kind) if automatic else float(self.forget_bound)
        if self.kind == "log_odds":
            forgetting = (bound - log_odds_against(logits[half:], labels[half:])).relu().mean()
        else:
            forgetting = bounded_cross_entropy(losses[half:], bound, lambda _: global_losses[1])
        return ObjectiveOutput(
            loss=retain_loss + self.forget_weight * forgetting,
            retain_loss=global_losses[0],
            forget_loss=global_losses[1],
            metrics={"retain_accuracy": hits[:half].mean(), "forget_accuracy": hits[half:].mean()},
        )


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What a classifier says of a batch with `labels`, shape `(B, C)`, from a forward that does not see them.

    Raises:
        InvalidInputError: If the forward gives no logits, or others than one row for each sample and one column for
            each class.
    """
    if "labels" not in inputs:
        fix = "Let `data_collator` put the integer labels there."
        raise InvalidInputError("the keys of a batch", sorted(inputs), "'labels' among them", fix)
    # Without labels the model does not compute its own loss over both halves, which nothing uses.
    logits = _logits_in(model(**{name: value for name, value in inputs.items() if name != "labels"}))
    _check_logits(model, logits, inputs["labels"])
    return logits


def _logits_in(outputs: Any) -> Tensor:
    """The logits in what a forward gives: a tensor, a tuple that begins with them, a mapping or an object."""
    named = dict(outputs) if isinstance(outputs, Mapping) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor) and value.ndim}
    # By any other name where it is the only one that can be meant; PatchTST has `prediction_logits`.
    candidates = [
        outputs,
        named.get("logits", getattr(outputs, "logits", None)),
        *[value for name, value in tensors.items() if name.endswith("logits")],
        *(tensors.values() if len(tensors) == 1 else ()),
        # Behind a loss, or the `None` in its place.
        *(outputs if isinstance(outputs, (tuple, list)) else ()),
    ]
    for value in candidates:
        if isinstance(value, Tensor) and value.ndim:
            return value
    raise InvalidInputError(
        "the model's output",
        sorted(named) or type(outputs).__name__,
        "a tensor of logits, a tuple that begins with them, or 'logits' by name",
        "Let the forward give the logits, or give GSLoraTrainer an `objective` of your own.",
    )


def _check_logits(model: nn.Module, logits: Tensor, labels: Tensor) -> None:
    """One row for each sample and one column for each of at least two classes."""
    batch = len(labels)
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        raise InvalidInputError(
            f"the shape of {type(bare(model)).__name__}'s logits",
            tuple(logits.shape),
            f"(B, C) = ({batch}, C): one row for each sample, one column for each of at least 2 classes",
            "Use a model that decides on whole samples, not on tokens or pixels, or give GSLoraTrainer an `objective` "
            "of your own.",
        )


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """As in `torch.nn.functional`, but for the error at a label that the head does not have."""
    try:
        return F.cross_entropy(logits, labels, reduction=reduction)
    except IndexError as error:  # On the CPU; to look for it elsewhere would wait for the device at every step.
        raise InvalidInputError(
            "labels",
            sorted(set(labels.tolist())),
            f"ids from 0 to {logits.shape[1] - 1}, because the head has {logits.shape[1]} classes",
            "Number the classes as the model was trained with.",
        ) from error


def _with_margin(model: nn.Module, logits: Tensor, labels: Tensor, rows: int) -> Tensor:
    """The margin of a head that has one (a face model's), which cannot apply it without labels, on the first rows.

    In training these are the half to keep. Taken from the logits of the half to forget, samples would count as
    forgotten that evaluation, which has no margin, still recognises.
    """
    own = unwrapped(model)
    if not hasattr(own, "margin_logits"):
        return logits
    return torch.cat([own.margin_logits(logits[:rows], labels[:rows]), logits[rows:]])
