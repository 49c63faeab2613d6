"""The settings that every task of a run is trained with, and their record in the ledger."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..data import ForgettingSplit, split_dataset
from ..errors import InvalidInputError, short
from ..ledger import ForgettingLedger, InvalidLedgerError, plain_json
from ..methods import GSLora, get_method
from ..training import ForgettingTrainer, GSLoraTrainingArguments, Method, adapter_of_recipe, unread_options
from ..tuner import GSLoraConfig, is_quick
from .settings import function_name, processor_identity

# Settings that affect the trained weights. Not recorded: paths, logging, settings of the machine, and what changes
# weights by rounding alone (full_determinism, tf32, gradient_checkpointing, torch_compile, use_liger_kernel).
_TRANSFORMERS_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "neftune_noise_alpha", "optim_target_modules", "auto_find_batch_size",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "seed", "data_seed", "bf16", "fp16",
)  # fmt: skip
# Which checkpoints the best one is chosen from.
_BEST_OF = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps")


# Settings that only affect the outcome, which records them. They may change when a run is resumed.
_OUTCOME_SETTINGS = ("max_forget_accuracy",)


_ADAPTER_SETTINGS = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "exclude_modules",
    "block_pattern", "exclude_blocks", "group_by", "rank_pattern", "alpha_pattern",
)  # fmt: skip


@dataclass
class Recipe:
    """The settings that every task of a run is trained with. They may be changed between two requests.

    Args:
        config ([`GSLoraConfig`]):
            Configuration of the adapter. Each task uses a copy.
        args ([`GSLoraTrainingArguments`]):
            Arguments of the training. Each task uses a copy.
        label_column (`str`):
            Column of the labels, or of annotated boxes.
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
            Callbacks of every trainer. Those with a state start fresh for each task.
        data (`Mapping[str, str]`):
            Identity of the data, recorded with the settings; see [`data_settings`].
        method ([`Method`] or `str`, *optional*):
            The method, or its name; by default GS-LoRA.

    Raises:
        InvalidInputError: If the adapter's initialisation needs data, or the method does not read one of `args`.
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
        self.method.check(self.args)
        if self.config.init_lora_weights == "eva":
            raise InvalidInputError(
                "init_lora_weights",
                "eva",
                "an initialisation without a pass over data, because each task starts with a new adapter",
                "Use True (default), 'gaussian', 'orthogonal' or 'mica', or train one adapter with GSLoraTrainer.",
            )

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the model train, instead of a new adapter for each task."""
        return get_method(self.method).trains == "weights"

    def split(self, dataset: Dataset, classes: Sequence[int], old: Sequence[int], scored: set[int]) -> ForgettingSplit:
        """Splits the training data for one task.

        Args:
            dataset (`datasets.Dataset`):
                The training data.
            classes (`Sequence[int]`):
                Ids of the classes to forget.
            old (`Sequence[int]`):
                Ids of the classes forgotten by earlier tasks.
            scored (`set[int]`):
                Ids of the classes of the evaluation data. Those without training data count as missing.
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
        return replace(split, roles=split.roles.with_rest("missing", scored))

    def trainer(
        self,
        model: nn.Module,
        split: ForgettingSplit,
        output_dir: Path,
        earlier: Sequence[Mapping[str, Tensor]] = (),
    ) -> ForgettingTrainer:
        """Makes the trainer of one task. It pushes nothing to the Hub: checkpoints of a request are private.

        Args:
            model (`torch.nn.Module`):
                The model, with the adapter of the task if one trains.
            split ([`ForgettingSplit`]):
                The training data.
            output_dir (`Path`):
                Folder of the trainer.
            earlier (`Sequence[Mapping[str, torch.Tensor]]`, *optional*):
                What the method kept of each earlier task.
        """
        method = copy.copy(get_method(self.method))
        method.earlier = earlier
        args = copy.copy(self.args)
        args.output_dir, args.push_to_hub = str(output_dir), False
        return ForgettingTrainer(
            model,
            args,
            method=method,
            forget_dataset=split.forget,
            retain_dataset=split.retain,
            forget_classes=split.forget_classes,
            old_classes=split.old_classes,
            missing_classes=split.missing_classes,
            label_column=self.label_column,
            processing_class=self.processing_class,
            data_collator=self.data_collator,
            augment=self.augment,
            callbacks=[_fresh_callback(callback) for callback in self.callbacks],
        )

    def for_requests(self, count: int, args: Sequence[GSLoraTrainingArguments] | None) -> list[Recipe]:
        """Returns one recipe for each request, with its own training arguments if `args` are given."""
        if args is not None and len(args) != count:
            raise InvalidInputError("args", args, f"one for each of {count} requests", "Give as many.")
        return [replace(self, args=own) for own in args or [self.args] * count]

    @contextmanager
    def with_args(self, args: GSLoraTrainingArguments) -> Iterator[None]:
        """Uses other training arguments for the time of a `with` block."""
        before, self.args = self.args, args
        try:
            yield
        finally:
            self.args = before

    def _spread(self) -> dict[str, Any]:
        """How batches are spread over processes."""
        own: Any = self.args.accelerator_config
        return {"num_processes": self.args.world_size, "split_batches": own.split_batches}

    def settings(self) -> dict[str, Any]:
        """Returns the record of the settings: `training`, `data`, `config` (adapters), and `method` unless GS-LoRA."""
        method = get_method(self.method)
        inherited = (item.name for item in fields(TrainingArguments))
        excluded = {*_OUTCOME_SETTINGS, *inherited, *unread_options(method.reads)}
        own = [item.name for item in fields(GSLoraTrainingArguments) if item.name not in excluded]
        best = _BEST_OF if self.args.load_best_model_at_end else ()
        training = {name: getattr(self.args, name) for name in (*own, *_TRANSFORMERS_SETTINGS, *best)}
        data = {
            "replay_ratio": self.replay_ratio,
            "shots": self.shots,
            "processor": processor_identity(self.processing_class),
            "augment": function_name(self.augment),
            **self.data,
        }
        values = {
            **({} if self.trains_weights else {"config": adapter_settings(self.config)}),
            "training": {**training, **self._spread()},
            "data": data,
        }
        if method.name != GSLora.name:
            values["method"] = method.settings()
        return plain_json(values, "settings")


def config_for(method: Method, args: GSLoraTrainingArguments, given: GSLoraConfig | None) -> GSLoraConfig:
    """Returns the configuration of the adapters of a run: the given one, or that of the recipe.

    Raises:
        InvalidInputError: If one is given, and the method trains weights of the model instead of adapters.
    """
    if given is None:
        return adapter_of_recipe(args.recipe)
    if method.trains == "weights":
        expected = f"None: the method {method.name!r} trains weights of the model and makes no adapter"
        raise InvalidInputError("config", given, expected, "Leave it out.")
    return given


def adapter_settings(config: GSLoraConfig) -> dict[str, Any]:
    """Returns the settings of a configuration that affect the adapter, in plain JSON types."""
    values = {name: getattr(config, name) for name in _ADAPTER_SETTINGS}
    values["target_modules"] = config.structural_target or config.target_modules
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    return plain_json(values, "config")


def _fresh_callback(callback: TrainerCallback) -> TrainerCallback:
    return type(callback)(**callback.state()["args"]) if isinstance(callback, ExportableState) else callback


def recorded_config(ledger: ForgettingLedger) -> GSLoraConfig | None:
    """Returns the adapter configuration of the last task in the ledger; `None` if it records none.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger, which may come from elsewhere.

    Raises:
        InvalidLedgerError: If the record is not a configuration, has unknown settings, or has patterns whose search
            may never end.
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
        fix = f"Those in '{ledger.path}' cannot be used: {error}. Give your own: config=GSLoraConfig(...)."
        name = f"{ledger.tasks[-1].name}.settings.config"
        raise InvalidLedgerError(name, recorded, "adapter settings of this version", fix) from error


def _patterns(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the regular expressions among adapter settings, by name."""
    for name in ("target_modules", "exclude_modules", "block_pattern", "exclude_blocks"):
        if isinstance(settings.get(name), str):
            yield name, settings[name]
    for name in ("rank_pattern", "alpha_pattern"):
        yield from ((name, key) for key in settings.get(name) or ())


def warn_not_pushed(args: GSLoraTrainingArguments, folder: Path) -> None:
    """Warns that `push_to_hub=True` has no effect in a run, which is published as a whole with [`push_to_hub`]."""
    if args.push_to_hub and args.process_index == 0:
        repo_id = args.hub_model_id or "organisation/name"
        warnings.warn(
            "`push_to_hub`=True has no effect here: a run is published as a whole. Call "
            f"gs_lora_peft.push_to_hub({str(folder)!r}, {repo_id!r}) after the requests.",
            stacklevel=3,
        )
