"""What the papers' baselines share: everything but the head trains, and samples to forget get other labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...checking import Flag, Number, check_fields
from ...errors import InvalidInputError
from ...objectives import NoEmbeddingFoundError, ObjectiveOutput, find_head
from ...training import Method, Trained, TrainedWeights

Positive = Annotated[Number, Field(gt=0, description="a positive, finite number")]

OFFICIAL_SHIFT = 100  # the largest number that the public code adds to a label

# "AdamW, weight decay 0.05, cosine to 1e-5, 100 epochs" of the papers' runs on faces.
PUBLISHED: dict[str, Any] = {
    "num_train_epochs": 100,
    "per_device_train_batch_size": 48,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-5},
}


@dataclass(kw_only=True)
class Baseline(Method):
    """A baseline of the GS-LoRA papers, which train every weight but those of the head.

    The adapter of a model trains instead, if it has one.

    Raises:
        InvalidInputError: If a hyper-parameter is out of range, or the model has no single head.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def take(self, model: nn.Module) -> Trained:
        if isinstance(model, PeftModel):
            return super().take(model)
        try:
            head = find_head(model)
        except NoEmbeddingFoundError as error:
            fix = "Pass a classifier with one head, or a model with an adapter."
            raise InvalidInputError(error.name, error.value, error.expected, fix) from error
        model.get_submodule(head).requires_grad_(False)
        return TrainedWeights(model)


@dataclass(kw_only=True)
class Relabelling(Baseline):
    """A baseline that trains the samples to forget towards other labels.

    By default these are drawn anew at every step, uniformly from the classes to keep that have data. The public code
    draws (y + n) mod F instead, with n from 1 to 100 and F classes to forget, and takes (y + 1) mod F if that is y.
    This reaches the ids below F alone, whatever classes they are.

    Args:
        official_compat (`bool`, *optional*, defaults to `False`):
            Whether to draw as the public code does.
    """

    official_compat: Flag = False

    def other_labels(self, labels: Tensor) -> Tensor:
        """Returns another label for each sample to forget, shape `(B,)`."""
        roles, count = self.trainer.roles, labels.shape
        # On the CPU, whose generator every checkpoint holds.
        if not self.official_compat:
            return self.random_kept(labels)
        shifts = torch.randint(1, OFFICIAL_SHIFT + 1, count).to(labels.device)
        shifted = (labels + shifts) % len(roles.forget)
        return torch.where(shifted == labels, (labels + 1) % len(roles.forget), shifted)

    def relabelled_loss(self, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        """Returns the mean cross-entropy of the samples to forget with their other labels."""
        logits, labels = self.forget_half(inputs, output)
        return F.cross_entropy(logits, self.other_labels(labels))


def softened_kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · mean KL(softmax(teacher / T) ‖ softmax(logits / T)) of knowledge distillation, in nats.

    T² keeps the size of the gradient the same at every T (https://arxiv.org/abs/1503.02531). Both have shape `(B, C)`.
    """
    now, before = (values.float().div(temperature).log_softmax(1) for values in (logits, teacher))
    return temperature**2 * F.kl_div(now, before, reduction="batchmean", log_target=True)
