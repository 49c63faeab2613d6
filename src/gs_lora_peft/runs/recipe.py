"""What every task of a run is trained with, and how the ledger records it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..data import ForgettingSplit, split_dataset
from ..errors import InvalidInputError, short
from ..ledger import ForgettingLedger, InvalidLedgerError, plain_json
from ..methods import GSLora, get_method
from ..training import ForgettingTrainer, GSLoraTrainingArguments, Method
from ..tuner import GSLoraConfig, is_quick
from .settings import function_name, processor_identity


def warn_not_pushed(args: GSLoraTrainingArguments, folder: Path) -> None:
    """Warns that `push_to_hub=True` sends nothing by itself: a run is published as a whole, when its owner says so."""
    if args.push_to_hub and args.process_index == 0:
        repo_id = args.hub_model_id or "organisation/name"
        warnings.warn(
            f"`push_to_hub`=True publishes nothing here: a run is published as a whole, when you ask for it. Call "
            f"gs_lora_peft.push_to_hub({str(folder)!r}, {repo_id!r}) after the requests.",
            stacklevel=3,
        )


# What decides the weights that come out. Paths, logging and other matters of the machine stay out of the record.
_OF_TRANSFORMERS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip


# By what a task is judged is in its outcome. It decides nothing about the weights, so that it may change on resuming.
_OF_OUTCOME = ("max_forget_accuracy",)


_OF_ADAPTER = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "exclude_modules",
    "block_pattern", "exclude_blocks", "group_by", "rank_pattern", "alpha_pattern",
)  # fmt: skip


@dataclass
class Recipe:
    """What every task of a run is trained with. It may be changed between two requests.

    Args:
        config ([`GSLoraConfig`]):
            The adapter; each task gets a copy.
        args ([`GSLoraTrainingArguments`]):
            The training; each task gets a copy.
        label_column (`str`):
            Column of the labels.
        processing_class (*optional*):
            The model's image processor, tokenizer or feature extractor.
        data_collator (`Callable`):
            Collates rows into a batch with `labels`.
        replay_ratio (`float`):
            As in [`split_dataset`].
        shots (`int`, *optional*):
            As in [`split_dataset`].
        missing_classes (`Sequence[str | int]`):
            Classes to keep whose training data must not be used, as `missing` in [`split_dataset`].
        augment (`Callable`, *optional*):
            As in [`GSLoraTrainer`].
        callbacks (`Sequence[TrainerCallback]`):
            Handed to every trainer; those that keep a state start anew.
        data (`Mapping[str, str]`):
            What identifies the data, recorded with the settings.
        method ([`Method`] or `str`, *optional*):
            How to forget, or its name; by default GS-LoRA. A method that trains the adapter.

    Raises:
        InvalidInputError: If the method leaves no adapter behind, or the adapter cannot be made without data.
    """

    config: GSLoraConfig
    args: GSLoraTrainingArguments
    label_column: str
    processing_class: Any
    data_collator: Callable
    replay_ratio: float = 1.0
    shots: int | None = None
    missing_classes: Sequence[str | int] = ()
    augment: Callable[[Any], Any] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    method: Method | str = field(default_factory=GSLora)

    def __post_init__(self) -> None:
        self.method = get_method(self.method)
        if self.method.trains == "weights":
            raise InvalidInputError(
                "method",
                self.method.name,
                "a method that trains a LoRA adapter: a run keeps one for each request, and this one leaves none",
                "Use another one, or train a single model with ForgettingTrainer.",
            )
        if self.config.init_lora_weights == "eva":
            raise InvalidInputError(
                "init_lora_weights",
                "eva",
                "an initialisation that needs no pass over data, since each task begins with an adapter of its own",
                "Use True (default), 'gaussian', 'orthogonal' or 'mica', or train one adapter with GSLoraTrainer.",
            )

    def split(self, dataset: Dataset, classes: Sequence[int], old: Sequence[int], scored: set[int]) -> ForgettingSplit:
        """The parts of the training data for one task; the seed of the data says what is drawn. `scored` are the
        classes that the task is scored on: those without training data are missing, whether named or not.
        """
        split = split_dataset(
            dataset,
            forget=classes,
            old=old,
            missing=self.missing_classes,
            label_column=self.label_column,
            replay_ratio=self.replay_ratio,
            shots=self.shots,
            seed=self.args.sampling_seed,
        )
        silent = scored.difference(split.forget_classes, split.retain_classes, split.old_classes)
        return replace(split, missing_classes=sorted(silent.union(split.missing_classes)))

    def trainer(self, model: PeftModel, split: ForgettingSplit, output_dir: Path) -> ForgettingTrainer:
        """A trainer for one task. Nothing is pushed to the Hub: checkpoints of a request are private."""
        args = copy.copy(self.args)
        args.output_dir, args.push_to_hub = str(output_dir), False
        return ForgettingTrainer(
            model,
            args,
            method=get_method(self.method),
            forget_dataset=split.forget,
            retain_dataset=split.retain,
            forget_classes=split.forget_classes,
            old_classes=split.old_classes,
            missing_classes=split.missing_classes,
            label_column=self.label_column,
            processing_class=self.processing_class,
            data_collator=self.data_collator,
            augment=self.augment,
            callbacks=[_started_anew(callback) for callback in self.callbacks],
        )

    def of_each(self, count: int, args: Sequence[GSLoraTrainingArguments] | None) -> list[Recipe]:
        """The recipe of each of so many requests, with arguments of its own where they are given."""
        if args is not None and len(args) != count:
            raise InvalidInputError("args", args, f"one for each of {count} requests", "Give as many.")
        return [replace(self, args=own) for own in args or [self.args] * count]

    @contextmanager
    def trained_by(self, args: GSLoraTrainingArguments) -> Iterator[None]:
        """Trains by other arguments for the time of the block."""
        before, self.args = self.args, args
        try:
            yield
        finally:
            self.args = before

    def settings(self) -> dict[str, Any]:
        """The recipe as plain JSON types: `config`, `training` and `data`, and a `method` other than GS-LoRA."""
        left_out = {*_OF_OUTCOME, *(item.name for item in fields(TrainingArguments))}
        own = [item.name for item in fields(GSLoraTrainingArguments) if item.name not in left_out]
        training = {name: getattr(self.args, name) for name in (*own, *_OF_TRANSFORMERS)}
        data = {
            "replay_ratio": self.replay_ratio,
            "shots": self.shots,
            "processor": processor_identity(self.processing_class),
            "augment": function_name(self.augment),
            **self.data,
        }
        values = {
            "config": adapter_settings(self.config),
            "training": {**training, "num_processes": self.args.world_size},
            "data": data,
        }
        method = get_method(self.method)
        if method.name != GSLora.name:
            values["method"] = method.settings()
        return plain_json(values, "settings")


def adapter_settings(config: GSLoraConfig) -> dict[str, Any]:
    """The settings of a configuration that decide the adapter, as plain JSON types."""
    values = {name: getattr(config, name) for name in _OF_ADAPTER}
    values["target_modules"] = config.structural_target or config.target_modules
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    return plain_json(values, "config")


def _started_anew(callback: TrainerCallback) -> TrainerCallback:
    return type(callback)(**callback.state()["args"]) if isinstance(callback, ExportableState) else callback


def recorded_config(ledger: ForgettingLedger) -> GSLoraConfig | None:
    """The configuration of the last task, as the ledger has it; `None` where it has none.

    Raises:
        InvalidLedgerError: The record is not a configuration, has settings that this version does not know, or has
            patterns whose search may never end.
    """
    recorded = ledger.tasks[-1].settings.get("config") if ledger.tasks else None
    if recorded is None:
        return None
    known = adapter_settings(GSLoraConfig())
    try:
        if unknown := sorted(recorded.keys() - known.keys()):
            raise ValueError(f"this version does not know {unknown}")
        for name, pattern in _patterns(recorded):
            if not is_quick(pattern):
                raise ValueError(f"a search with {name}={short(pattern)} may never end")
        return GSLoraConfig(**recorded)
    except (AttributeError, TypeError, ValueError) as error:
        fix = f"They cannot be taken over from '{ledger.path}': {error}. Give your own: config=GSLoraConfig(...)."
        name = f"{ledger.tasks[-1].name}.settings.config"
        raise InvalidLedgerError(name, recorded, "adapter settings of this version", fix) from error


def _patterns(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions among adapter settings."""
    for name in ("target_modules", "exclude_modules", "block_pattern", "exclude_blocks"):
        if isinstance(settings.get(name), str):
            yield name, settings[name]
    for name in ("rank_pattern", "alpha_pattern"):
        yield from ((name, key) for key in settings.get(name) or ())
