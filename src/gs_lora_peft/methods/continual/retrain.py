"""Retraining: new weights that only ever see the samples to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from ...compat import fresh_model, unwrapped
from ...errors import InvalidInputError
from ...objectives import ObjectiveOutput
from ...training import Method, Trained, TrainedWeights
from .base import PUBLISHED


@dataclass(kw_only=True)
class Retrain(Method):
    """Trains a model again from the start, on the samples to keep alone.

    All weights start anew, by the model's own initialisation and the seed of the training, and CE(retain half, y) is
    minimised. The samples to forget pass through the model and leave no trace in it. This is the baseline of the
    GS-LoRA papers (https://arxiv.org/abs/2403.11530), which have 10 % of the training data: with so few samples it is
    far below a model that was trained on all data of the classes to keep, which `gs-lora audit` compares with.

    Cost: that of a training. Half of each forward is spent on samples to forget, which count in the logs alone. A
    second copy of the weights is in memory while they start anew.

    Raises:
        InvalidInputError: If the model is not one of transformers, or has BatchNorm, which would take its statistics
            from the samples to forget, too.
    """

    name = "retrain"
    trains = "weights"
    title = "retraining on the samples to keep"
    published: ClassVar = {**PUBLISHED, "learning_rate": 3e-4, "warmup_steps": 0.05}  # 5 of 100 epochs

    def take(self, model: nn.Module) -> Trained:
        if not isinstance(model, PreTrainedModel):
            expected = "a transformers.PreTrainedModel without adapters, which can be built again"
            raise InvalidInputError("model", type(model).__name__, expected)
        if found := next((path for path, module in model.named_modules() if isinstance(module, _BatchNorm)), None):
            expected = "a model without BatchNorm: its statistics would come from the samples to forget, too"
            fix = "Train such a model on the samples to keep by itself: gs_lora_peft.audit.retrain."
            raise InvalidInputError("model", found, expected, fix)
        # What trains in a new model, whatever is frozen in this one.
        flags = {name: weight.requires_grad for name, weight in _new(model, 0).named_parameters()}
        for name, weight in model.named_parameters():
            weight.requires_grad_(flags[name])
        return TrainedWeights(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A training that is resumed has its weights from the checkpoint.
        if state.global_step == 0:
            model = unwrapped(self.trainer.model)
            model.load_state_dict(_new(model, args.seed).state_dict())

    def loss(self, model: nn.Module, inputs: dict[str, Any], output: ObjectiveOutput) -> Tensor:
        return F.cross_entropy(*self.retain_half(inputs, output))


def _new(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():  # the random numbers of the training stay the same
        torch.manual_seed(seed)
        return fresh_model(model)
