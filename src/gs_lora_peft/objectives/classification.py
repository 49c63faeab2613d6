"""What "retain" and "forget" mean for a classifier: cross-entropy, and its bounded opposite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat import unwrapped
from ..errors import InvalidInputError
from .base import Kind, LossArguments, Objective, ObjectiveOutput, Task
from .depth import with_depth
from .heads import logits_of
from .losses import ForgetLoss, GlobalMean, auto_forget_bound, bounded_cross_entropy, identity, log_odds_against
from .terms import with_distillation, with_prototypes


class ClassificationObjective(Objective):
    r"""The loss of a classifier: L_retain + β · a bounded forgetting term, from the logits of one joint batch.

    L_retain is the mean cross-entropy of the half to keep. The forgetting term is one of

    - `"log_odds"`: the mean over the forget half of ReLU(BND − log((1 − p_i) / p_i)), with [`log_odds_against`]. Each
      sample is pushed until it is forgotten, however sure the head is of it, and no further.
    - `"cross_entropy"`: ReLU(BND − mean CE), as published (GS-LoRA, https://arxiv.org/abs/2403.11530, eq. 4). A class
      that is pushed far beyond the bound can then hide another one that the model still knows.

    A head with its own loss (SFace) trains by the cross-entropy of its logits, like every other head.

    Classes to keep that have no training data take no part in either term. They would be the wrong class of every
    sample and the right class of none, so that training would forget them. [`DistillationObjective`] holds them.

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
        """The losses of a joint batch from its logits.

        Args:
            logits (`torch.Tensor`):
                Shape `(2·B, C)`: B samples to keep, then B samples to forget.
            labels (`torch.Tensor`):
                int64, shape `(2·B,)`.
            global_mean (`Callable`, *optional*):
                Averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`]: The loss. Its metrics `retain_accuracy` and `forget_accuracy` are the accuracies of
            this process's halves.

        Raises:
            InvalidInputError: If the batch does not have two equal halves.
        """
        if labels.shape[0] % 2:
            expected = "an even number, as many samples to keep as to forget"
            fix = "The collator must neither drop nor add samples."
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
        # Predictions use the whole head, so the bound depends on the whole head.
        is_auto = self.forget_bound == "auto"
        bound = auto_forget_bound(logits.shape[-1], self.kind) if is_auto else float(self.forget_bound)
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


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """As `torch.nn.functional.cross_entropy`, with an error that names labels outside the head."""
    try:
        return F.cross_entropy(logits, labels, reduction=reduction)
    except IndexError as error:  # On the CPU only; a check on a GPU would wait for the device at every step.
        raise InvalidInputError(
            "labels",
            sorted(set(labels.tolist())),
            f"ids from 0 to {logits.shape[1] - 1}, because the head has {logits.shape[1]} classes",
            "Use the class ids that the model was trained with.",
        ) from error


def _with_margin(model: nn.Module, logits: Tensor, labels: Tensor, rows: int) -> Tensor:
    """Applies the margin of a head that has one (a face model's) to the first rows; the head needs labels for it.

    In training these rows are the half to keep. With a margin on the half to forget, samples would count as forgotten
    that evaluation, which has no margin, still recognises.
    """
    own = unwrapped(model)
    if not hasattr(own, "margin_logits"):
        return logits
    return torch.cat([own.margin_logits(logits[:rows], labels[:rows]), logits[rows:]])


def _make(model: nn.Module, args: LossArguments, task: Task) -> Objective:
    objective: Objective = ClassificationObjective(
        args.forget_weight, args.forget_bound, args.forget_loss, task.roles.missing
    )
    objective = with_depth(with_prototypes(objective, model, args), model, args, task)
    return with_distillation(objective, model, args, task)


CLASSIFICATION = Kind(fits=lambda model: True, make=_make)
