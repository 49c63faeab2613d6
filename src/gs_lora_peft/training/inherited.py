"""Every option of [`transformers.TrainingArguments`]: obeyed, or refused with the reason.

An option that is neither would be ignored silently, or break a training half-way. Each one is listed here, so that a
test notices the options of a new version of transformers (tests/training/test_inherited.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from transformers import Trainer, TrainingArguments

from ..compat import bare, has_input_embeddings
from ..errors import InvalidInputError

# Scores that are better if they are smaller, besides losses, which transformers knows.
_SMALLER_IS_BETTER = ("_forget", "_old")

_NO_DEEPSPEED = (
    "its optimizer keeps copies of what trains, which would overwrite what a method does to it, such as the proximal "
    "step"
)
_USE_FSDP = (
    "Shard the base model with FSDP 2 instead, which saves as much memory with a frozen base: accelerate launch "
    "--config_file examples/accelerate/fsdp2.yaml ..."
)


@dataclass(frozen=True)
class Refusal:
    """When an option is refused, and why.

    Args:
        when (`Callable`):
            From the arguments, or from the trainer, to whether the value cannot be obeyed.
        expected (`str`):
            As in [`InvalidInputError`].
        fix (`str`):
            As in [`InvalidInputError`].
    """

    when: Callable[[Any], bool]
    expected: str
    fix: str


def _not_whole_from(name: str, least: int) -> Callable[[Any], bool]:
    def refused(args: Any) -> bool:
        value = getattr(args, name)
        return not _finite(value) or value != int(value) or value < least

    return refused


def _gives_no_epoch(args: Any) -> bool:
    epochs = args.num_train_epochs
    # A positive number of steps overrides the epochs.
    return not _positive(epochs) and not _positive(args.max_steps)


def _no_whole_steps(name: str, strategy: str) -> Callable[[Any], bool]:
    def refused(args: Any) -> bool:
        steps = getattr(args, name)
        # A number below 1 is a fraction of the training.
        return getattr(args, strategy) == "steps" and (steps == 0 or (steps > 1 and steps != int(steps)))

    return refused


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_one_of(values: tuple[Any, ...], field: str) -> Callable[[Any], bool]:
    # Enums of transformers are strings that equal their values.
    return lambda args: any(getattr(args, field, None) == value for value in values)


_AT_LEAST_ONE = "a whole number of at least 1"

_STEPS_IN_BACKWARD = (
    "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)  # fmt: skip

_SCHEDULE_FREE = ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd")


# Checked when the arguments are made, before transformers reads them.
BY_ARGUMENTS: dict[str, list[Refusal]] = {
    "num_train_epochs": [
        Refusal(
            _gives_no_epoch,
            "a finite number above 0: without an epoch, no step is taken and nothing is forgotten",
            "Give a number of epochs, or a positive `max_steps`.",
        )
    ],
    "max_steps": [
        Refusal(
            _is_one_of((0,), "max_steps"),
            "at least 1, or -1 to train for `num_train_epochs`: with 0 steps nothing is forgotten",
            "Leave it out, or give a number of optimizer steps.",
        )
    ],
    "per_device_train_batch_size": [
        Refusal(_not_whole_from("per_device_train_batch_size", 1), _AT_LEAST_ONE, "Give the size of each half.")
    ],
    "per_device_eval_batch_size": [
        Refusal(_not_whole_from("per_device_eval_batch_size", 1), _AT_LEAST_ONE, "Give the size of a batch.")
    ],
    "gradient_accumulation_steps": [
        Refusal(_not_whole_from("gradient_accumulation_steps", 1), _AT_LEAST_ONE, "Give 1 for no accumulation.")
    ],
    **{
        f"{kind}_steps": [
            Refusal(
                _no_whole_steps(f"{kind}_steps", f"{kind}_strategy"),
                f"a whole number from 1 up, or a fraction of all steps in (0, 1), with {kind}_strategy='steps'",
                f"Give one, or leave {kind}_strategy='steps' out.",
            )
        ]
        for kind in ("logging", "save")
    },
    "fsdp": [
        Refusal(
            lambda args: bool(args.fsdp),
            "None: the Trainer would shard the adapter together with the base model",
            "Ask accelerate for FSDP 2, which then shards the base model alone: accelerate launch --config_file "
            "examples/accelerate/fsdp2.yaml ...",
        )
    ],
    "deepspeed": [Refusal(lambda args: bool(args.deepspeed), "None: " + _NO_DEEPSPEED, _USE_FSDP)],
    "dataloader_prefetch_factor": [
        Refusal(
            lambda args: args.dataloader_prefetch_factor is not None and args.dataloader_num_workers == 0,
            "None without workers, because only workers fetch batches ahead",
            "Give `dataloader_num_workers`, or leave it out.",
        )
    ],
    "label_smoothing_factor": [
        Refusal(
            lambda args: args.label_smoothing_factor != 0.0,
            "0: smoothed labels would pull back the classes that `forget_bound` pushes away",
            "Leave it at 0.",
        )
    ],
    "optim": [
        Refusal(
            _is_one_of(_STEPS_IN_BACKWARD, "optim"),
            "an optimizer that takes its steps after the backward pass; this one updates weights during it, before a "
            "NaN or a dropped group can be found",
            "Use 'adamw_torch_fused' (the default) or another one: an adapter is small enough for it.",
        ),
        Refusal(
            lambda args: _is_one_of(_SCHEDULE_FREE, "optim")(args) and args.sparsity == "proximal",
            "an optimizer without an average of its own; a schedule-free one evaluates and saves a mean of earlier "
            "weights, in which dropped groups are not zero",
            "Use 'adamw_torch_fused' (the default), or `sparsity='none'`.",
        ),
    ],
    "train_sampling_strategy": [
        Refusal(
            lambda args: getattr(args, "train_sampling_strategy", "random") != "random",
            "'random': PairedSampler draws pairs of a sample to keep and a sample to forget",
            "Leave it at 'random'.",
        )
    ],
    "label_names": [
        Refusal(
            lambda args: args.label_names is not None and list(args.label_names) != ["labels"],
            "None or ['labels'], the key that the collators give the labels of a batch",
            "Leave it out; the trainer's `label_column` names the column of the data.",
        )
    ],
    "hub_strategy": [
        Refusal(
            lambda args: args.push_to_hub and _is_one_of(("checkpoint", "all_checkpoints"), "hub_strategy")(args),
            "'every_save' or 'end': a checkpoint holds pickles and stays on this machine",
            "Leave it at 'every_save', which publishes the adapter with every `save_model`.",
        )
    ],
}


# Checked when the trainer is made: they depend on the model, the data or the number of processes.
BY_TRAINER: dict[str, list[Refusal]] = {
    "accelerator_config": [
        Refusal(
            lambda trainer: (
                trainer.args.world_size > 1
                and trainer.args.accelerator_config.dispatch_batches is True
                and (trainer.args.accelerator_config.split_batches or trainer.has_boxes)
            ),
            "no `dispatch_batches`, because one process would split joint batches for the others",
            "Leave `dispatch_batches` out: every process reads its own samples.",
        )
    ],
    "parallelism_config": [
        Refusal(
            lambda trainer: any(
                (getattr(trainer.args.parallelism_config, f"{kind}_size", 1) or 1) > 1
                for kind in ("tp", "cp", "sp", "dp_shard")
            ),
            "plain data parallelism: group norms and proximal steps need whole matrices",
            "Use DDP (`accelerate launch --multi_gpu`) alone; a LoRA adapter is small enough for it.",
        )
    ],
    "neftune_noise_alpha": [
        Refusal(
            lambda trainer: (
                trainer.args.neftune_noise_alpha is not None and not has_input_embeddings(bare(trainer.model))
            ),
            "None: the model has no input embeddings to add noise to",
            "Leave it out, or use `augmentation`.",
        )
    ],
}


# Refused by `check_distribution`, `check_evaluation`, `check_checkpointing`, the trainer or its method.
ELSEWHERE = {
    "fsdp_config", "ddp_find_unused_parameters", "ddp_static_graph", "metric_for_best_model", "eval_strategy",
    "eval_on_start", "prediction_loss_only", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "dataloader_drop_last",
}  # fmt: skip


OBEYED = {
    "output_dir", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "max_grad_norm", "bf16",
    "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "torch_empty_cache_steps",
    "auto_find_batch_size", "logging_strategy", "logging_first_step", "log_on_each_node",
    "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm",
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "eval_steps", "eval_delay", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
    "include_for_metrics", "batch_eval_metrics", "save_only_model", "save_strategy",
    "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo",
    "hub_model_id", "hub_always_push", "hub_revision", "load_best_model_at_end", "greater_is_better",
    "ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism", "seed", "data_seed", "use_cpu",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_multiprocessing_context", "dataloader_in_order", "remove_unused_columns", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_backend", "ddp_timeout", "debug", "skip_memory_metrics", "local_rank",
    # Without effect: no text is generated, no tokens are counted, and samples are not grouped by length.
    "use_cache", "average_tokens_across_devices", "length_column_name",
    # For scripts: the Trainer itself does not read them.
    "do_train", "do_eval", "do_predict", "resume_from_checkpoint",
}  # fmt: skip


def check_by_arguments(args: TrainingArguments) -> None:
    """Checks that the inherited options can be obeyed, whatever the model.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments.

    Raises:
        InvalidInputError: If an option cannot be obeyed.
    """
    for name, refusals in BY_ARGUMENTS.items():
        _check(name, refusals, args, args)


def check_by_trainer(trainer: Trainer) -> None:
    """Checks that the inherited options can be obeyed with this model, data and number of processes.

    Args:
        trainer ([`ForgettingTrainer`]):
            The trainer that is made.

    Raises:
        InvalidInputError: If an option cannot be obeyed.
    """
    for name, refusals in BY_TRAINER.items():
        _check(name, refusals, trainer, trainer.args)


def check_distribution(trainer: Trainer) -> None:
    """Checks that every process holds whole weights, which nothing but the optimizer and the method changes.

    Args:
        trainer ([`ForgettingTrainer`]):
            The trainer that is made.

    Raises:
        InvalidInputError: If DeepSpeed is switched on, e.g. by `accelerate config`, or an `Accelerator` that was made
            before shards the adapter, too.
    """
    for name, why, fix in (
        ("fsdp", "an Accelerator that was made before would shard the adapter, too", "Make none before the trainer."),
        ("deepspeed", _NO_DEEPSPEED, _USE_FSDP),
    ):
        if getattr(trainer, f"is_{name}_enabled"):
            raise InvalidInputError(name, getattr(trainer.args, name, None), f"None: {why}", fix)


def check_processes(args: TrainingArguments) -> None:
    """Checks that processes that were launched together also train together.

    Without an accelerator, and unless `use_cpu` is set, accelerate lets each process of `torchrun` train on its own.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments.

    Raises:
        InvalidInputError: If the environment asks for several processes, and this one is alone.
    """
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1" and args.world_size == 1:
        raise InvalidInputError(
            "use_cpu",
            args.use_cpu,
            f"True for {launched} processes (WORLD_SIZE) on the CPU: without it, each of them trains on its own",
            "Set use_cpu=True, or launch a single process.",
        )


def _check(name: str, refusals: list[Refusal], subject: Any, args: TrainingArguments) -> None:
    for refusal in refusals:
        if refusal.when(subject):
            raise InvalidInputError(name, getattr(args, name, None), refusal.expected, refusal.fix)


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller score is better: it measures what the model still knows of forgotten classes."""
    return metric.endswith(_SMALLER_IS_BETTER)
