"""The boundary between the trainer and a kind of model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn

from .scoring import ClassificationScoring, Scoring

GlobalMean = Callable[[Tensor], Tensor]


def identity(tensor: Tensor) -> Tensor:
    """The mean over processes where there is one process."""
    return tensor


def unwrapped(model: nn.Module) -> Any:
    """The model itself, where the trainer has wrapped it for several processes."""
    return extract_model_from_parallel(model)


def bare(model: nn.Module) -> Any:
    """The base model, out of its wrapper for several processes and its `PeftModel`."""
    own = unwrapped(model)
    return own.get_base_model() if isinstance(own, PeftModel) else own


@dataclass
class ObjectiveOutput:
    """
    The loss of one joint batch and what is worth logging of it.

    Attributes:
        loss (`torch.Tensor`): scalar to differentiate: L_retain + β · the forgetting term, and whatever else counts.
        retain_loss (`torch.Tensor`): L_retain, detached, mean over all processes.
        forget_loss (`torch.Tensor`): L_forget, detached and unbounded, mean over all processes.
        metrics (`dict[str, torch.Tensor]`): further scalars of this process, detached; the same names at every step.
        logits (`torch.Tensor`, *optional*): of a classifier: shape `(2·B, C)`, as the model gave them, with gradient.
        outputs (`dict[str, torch.Tensor]`): what the model answered, by name as in `evaluation_step`, with gradient;
            the trainer's `compute_loss(..., return_outputs=True)` returns it.
    """

    loss: Tensor
    retain_loss: Tensor
    forget_loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """
    What "forget" and "retain" mean for a kind of model. Subclass it; [`GSLoraTrainer`] knows nothing else of the kind.

    `model` is what the trainer calls, a `PeftModel` and under DDP a wrapper around it: [`unwrapped`] leads to the
    model's configuration and heads, while the forward must go through `model` itself.

    Attributes:
        scoring ([`Scoring`]): how evaluation compares the outputs of `evaluation_step` with the labels; by default as
            logits of a classifier.
    """

    scoring: Scoring = ClassificationScoring()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], global_mean: GlobalMean = identity
    ) -> ObjectiveOutput:
        """One joint forward and its losses.

        Args:
            model (`torch.nn.Module`): the model, in training mode.
            inputs (`dict`): a joint batch: B samples to keep, then B samples to forget.
            global_mean (`Callable`, *optional*): averages a tensor over processes; identity by default.

        Returns:
            [`ObjectiveOutput`]
        """
        ...

    def evaluation_step(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The loss of an ordinary batch and the outputs that metrics are computed from, without gradient.

        Args:
            model (`torch.nn.Module`): the model, in eval mode.
            inputs (`dict`): a batch of samples of any classes.

        Returns:
            `tuple[torch.Tensor, dict]`: a scalar, and the tensors to gather by name.
        """
        ...

    def prepare(
        self, model: nn.Module, batches: Callable[[], Iterable[dict[str, Any]]], global_sum: GlobalMean = identity
    ) -> None:
        """Looks at the training data before the first step; by default at nothing.

        Called at the start of every training, also of one that is resumed.

        Args:
            model (`torch.nn.Module`): the model as it was before the task: without the adapter that trains, in eval
                mode and without gradient.
            batches (`Callable`): gives this process's share of both training sets, in batches on the device.
            global_sum (`Callable`, *optional*): sums a tensor over processes; identity by default.
        """
        return None
