"""Task arithmetic: learn the samples to forget even better, and go as far the other way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerControl, TrainerState, TrainingArguments

from ...checking import Number, check_fields
from ...errors import InvalidInputError
from ...objectives import ObjectiveOutput
from ...training import Method, Trained, TrainedAdapter


@dataclass(kw_only=True)
class TaskArithmetic(Method):
    r"""Fine-tunes on the samples to forget, and takes the change off the weights instead of adding it.

    θ_f minimises CE(D_f) from the weights θ before the task; then θ_new = θ − λ (θ_f − θ). "Editing models with task
    arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089, which negates whole tasks of a CLIP model. The samples to
    keep take no part. λ should be chosen on held-out data: the largest one that keeps what is to be kept.

    An adapter is negated as the change of weights that it is: B ← −λ B. Training scores and keeps the negated
    weights; its checkpoints hold those that train. A classifier that is sure of D_f hardly changes, so weights move
    little, and λ above 1 may be needed.

    Args:
        scaling (`float`, *optional*, defaults to 1.0):
            λ, above 0.

    Raises:
        InvalidInputError: If `scaling` is out of range, or the adapter is not a fresh one.
    """

    name = "task_arithmetic"
    title = "task arithmetic, https://arxiv.org/abs/2212.04089"
    published: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "weight_decay": 0.1}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {"scaling": (0.5, 1.0, 2.0)}

    scaling: Annotated[Number, Field(gt=0, description="a finite number above 0")] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def take(self, model: nn.Module) -> Trained:
        trained = super().take(model)
        if isinstance(trained, TrainedAdapter) and any(matrix.any() for matrix in trained.start[1::2]):
            raise InvalidInputError(
                "adapter",
                trained.adapter,
                "a fresh one, whose `lora_B` are zero: the change of one that has been trained has no place in it",
                "Merge it first, and add a fresh one.",
            )
        return trained

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        return F.cross_entropy(*self.forget_half(inputs, output))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        now = [parameter.detach().clone() for parameter in self.trainer.trained.parameters]
        self._negate()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([parameter.detach() for parameter in self.trainer.trained.parameters], now)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._negate()

    @torch.no_grad()
    def _negate(self) -> None:
        trained = self.trainer.trained
        if isinstance(trained, TrainedAdapter):
            # The two factors of a pair are neighbours. Negating one negates the product.
            for factor in trained.parameters[1::2]:
                factor.mul_(-self.scaling)
            return
        for weight, start in zip(trained.parameters, trained.start, strict=True):
            weight.copy_(start - self.scaling * (weight - start))
