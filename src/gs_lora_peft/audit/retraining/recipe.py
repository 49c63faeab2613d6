"""How models are trained for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from pydantic import Field
from transformers import SchedulerType, TrainingArguments

from ...checking import Count, NotNegative, Number, check_fields, checked
from ...errors import InvalidInputError
from ...io import StrPath

SCRATCH = "scratch"

_Positive = Annotated[Number, Field(gt=0, description="a positive, finite number")]


@dataclass(frozen=True, kw_only=True)
class RetrainRecipe:
    """How models are trained for comparison. The defaults suit small models that are trained from scratch.

    Use the recipe of the original model where it is known. Else choose one that gives a model on all classes
    (`classes=[]`) the accuracy of the original, on data that no attack is judged on.

    Args:
        epochs (`float`, *optional*, defaults to 40):
            Passes over the data of the kept classes.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            Peak learning rate of AdamW. To fine-tune a pre-trained backbone, take about 5e-5.
        batch_size (`int`, *optional*, defaults to 64):
            Samples in a step, of all processes together.
        weight_decay (`float`, *optional*, defaults to 0.05):
            Weight decay of AdamW.
        warmup (`float`, *optional*, defaults to 0.05):
            Steps in which the learning rate rises; below 1, their share of all steps.
        schedule (`str`, *optional*, defaults to `"cosine"`):
            What follows, a `lr_scheduler_type` of transformers.
        start (`str`, *optional*, defaults to `"scratch"`):
            `"scratch"`: new weights from the configuration. Else a Hub id or a folder of a pre-trained model: its
            backbone is fine-tuned below a new head. The retrained model has then never been *fine-tuned* on the
            classes; what pre-training showed it stays in it. Not for detectors, whose backbones hold class heads.
        training (`dict`, *optional*):
            Other arguments of [`transformers.TrainingArguments`], such as `{"bf16": True}`.

    Example:
        ```py
        >>> RetrainRecipe.of({"epochs": 100, "batch_size": 16})
        ```
    """

    epochs: _Positive = 40
    learning_rate: _Positive = 1e-3
    batch_size: Count = 64
    weight_decay: NotNegative = 0.05
    warmup: NotNegative = 0.05
    schedule: str = "cosine"
    start: str = SCRATCH
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {item.name for item in fields(self)}
        check_fields(self)
        checked("schedule", self.schedule, Literal[tuple(kind.value for kind in SchedulerType)])
        taken = {"num_train_epochs", "per_device_train_batch_size", "warmup_steps", "lr_scheduler_type", "seed"}
        known = {item.name for item in fields(TrainingArguments)} - own - taken - {"output_dir"}
        for name in checked("training", self.training, dict[str, Any]):
            if name not in known:
                fix = "Most have a field of their own in the recipe."
                raise InvalidInputError("training", name, "other arguments of transformers.TrainingArguments", fix)

    @classmethod
    def of(cls, value: RetrainRecipe | Mapping[str, Any] | None) -> RetrainRecipe:
        """Returns a recipe from one, from its fields (as a YAML file gives them), or by default.

        Raises:
            InvalidInputError: If a field is unknown, or a value invalid.
        """
        if isinstance(value, RetrainRecipe):
            return value
        given = {} if value is None else checked("recipe", value, dict[str, Any], fix="Pass a RetrainRecipe.")
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise InvalidInputError("recipe", unknown, f"settings among {known}", "Correct or remove these.")
        return cls(**given)

    def arguments(self, output_dir: StrPath, seed: int, disable_tqdm: bool | None = None) -> TrainingArguments:
        """Returns the arguments of the training, which saves a checkpoint after each epoch to continue from.

        Args:
            output_dir (`str` or `os.PathLike`):
                Folder of the checkpoints.
            seed (`int`):
                Seed of the order of samples.
            disable_tqdm (`bool`, *optional*):
                As in `transformers.TrainingArguments`.

        Raises:
            InvalidInputError: If transformers refuses an argument.
        """
        given: dict[str, Any] = {
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": max(1, self.batch_size // PartialState().num_processes),
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.warmup,
            "lr_scheduler_type": self.schedule,
            "logging_strategy": "no",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "report_to": "none",
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.accelerator.is_available(),
            "disable_tqdm": disable_tqdm,
            "seed": seed,
            **self.training,
        }
        try:
            return TrainingArguments(output_dir=str(output_dir), **given)
        except ValueError as error:
            expected = f"arguments that transformers accepts: {' '.join(str(error).split())}"
            raise InvalidInputError("recipe.training", dict(self.training), expected) from error
