"""Types of the inherited options of [`transformers.TrainingArguments`] whose annotations say too little.

transformers reads most options late: a wrong value would break a training half-way, or have no effect. Each type
accepts what transformers accepts, and what transformers converts it to, because copies of the arguments are checked
again.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from enum import Enum
from typing import Annotated, Any, Literal

import torch
from accelerate.parallelism_config import ParallelismConfig
from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, PlainValidator
from transformers import SchedulerType, TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..checking import (
    BelowOne,
    ClassName,
    Count,
    Flag,
    NotNegative,
    NotNegativeWhole,
    OptionalText,
    Text,
    Whole,
    check_fields,
    ordered_list,
)
from ..errors import InvalidInputError

_LARGEST_SEED = 2**32 - 1  # of NumPy


def _one_of(kind: type[Enum]) -> Any:
    """A member of an enum of transformers, or its value."""

    def read(value: Any) -> Any:
        kind(value)  # the error is a ValueError
        return value

    names = ", ".join(repr(member.value) for member in kind)
    return Annotated[Any, PlainValidator(read), Field(description=f"one of {names}")]


def _choices(name: str) -> Any:
    """The choices that transformers offers for an option on the command line."""
    values = tuple(TrainingArguments.__dataclass_fields__[name].metadata["choices"])
    return Annotated[Literal[values], Field(description=f"one of {', '.join(map(repr, values))}")]


def _optional(kind: Any, said: str) -> Any:
    return Annotated[kind | None, Field(description=f"{said} or None")]


def _object_of_json(value: Any) -> Any:
    """A dictionary, or JSON text of one."""
    if isinstance(value, str):
        value = json.loads(value)  # the error is a ValueError
    return value


def _object_of_file(value: Any) -> Any:
    """A dictionary, JSON text of one, or the path of a JSON file."""
    if isinstance(value, (str, os.PathLike)) and not str(value).lstrip().startswith("{"):
        try:
            with open(value, encoding="utf-8") as file:
                value = json.load(file)
        except OSError:
            raise ValueError(
                "The file is missing or unreadable: give the path of a JSON file, or a dictionary."
            ) from None
    return _object_of_json(value)


def _accelerator_config(value: Any) -> Any:
    """Options of an `AcceleratorConfig`, in every form that transformers accepts."""
    if value is None or isinstance(value, AcceleratorConfig):
        return value
    settings = _object_of_file(value)
    if not isinstance(settings, dict):
        raise ValueError("Give a dictionary of its options.")
    known = [field.name for field in fields(AcceleratorConfig)]
    if unknown := [key for key in settings if key not in known]:
        raise ValueError(f"It has no option {unknown[0]!r}; there are {', '.join(known)}.")
    try:
        check_fields(AcceleratorConfig(**settings))
    except InvalidInputError as error:
        raise ValueError(f"In it, {error}") from None
    return value


def _pairs(value: str) -> str:
    # Split as in transformers.
    for entry in filter(None, value.replace(" ", "").split(",")):
        if entry.count("=") != 1:
            raise ValueError(f"Write {entry!r} as 'name=value'.")
    return value


def _debug_options(value: Any) -> Any:
    for option in value.split() if isinstance(value, str) else ordered_list(value):
        DebugOption(option)  # the error is a ValueError
    return value


def _trackers(value: Any) -> Any:
    names = [value] if isinstance(value, str) else ordered_list(value)
    known = ["all", "none", *INTEGRATION_TO_CALLBACK]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is unknown.")
    if len(names) > 1 and (alone := [name for name in names if name in ("all", "none")]):
        raise ValueError(f"Give {alone[0]!r} alone.")
    return value


def _backend(value: str) -> str:
    # Plug-ins register further ones, and accelerate adds "ccl".
    offered = TrainingArguments.__dataclass_fields__["ddp_backend"].metadata["choices"]
    known = dict.fromkeys([*offered, "ccl", *torch.distributed.Backend.backend_list])
    if value not in known or value == torch.distributed.Backend.UNDEFINED:
        raise ValueError(f"Give one of {', '.join(name for name in known if name != 'undefined')}.")
    return value


_Seed = Annotated[Whole, Field(ge=0, le=_LARGEST_SEED, description=f"a whole number from 0 to {_LARGEST_SEED}")]

_Json = Annotated[
    Annotated[dict[Text, Any], BeforeValidator(_object_of_json)] | None,
    Field(description="a dictionary, also as JSON text, or None"),
]

_JsonOrFile = Annotated[
    Annotated[dict[Text, Any], BeforeValidator(_object_of_file)] | None,
    Field(description="a dictionary, also as JSON text or in a JSON file, or None"),
]

_OptionalCount = _optional(Count, "a whole number from 1 up")

_OptionalNumber = _optional(NotNegative, "a finite number of at least 0")

_Names = Annotated[
    list[ClassName] | None, BeforeValidator(lambda v: v if v is None else ordered_list(v)),
    Field(description="a list of names or None"),
]  # fmt: skip

_Parallelism = Annotated[InstanceOf[ParallelismConfig] | None, Field(description="a ParallelismConfig or None")]

_Path = Annotated[
    bool | Text | InstanceOf[os.PathLike] | None, Field(description="the path of a checkpoint, True, False or None")
]


# By the name of the option. Other options are checked by their annotations.
KINDS: dict[str, Any] = {
    "max_steps": Annotated[Whole, Field(ge=-1, description="a whole number from 1 up, or -1")],
    "learning_rate": NotNegative,
    "lr_scheduler_type": _one_of(SchedulerType),
    "lr_scheduler_kwargs": _Json,
    "warmup_steps": NotNegative,
    "optim": _one_of(OptimizerNames),
    "optim_args": _optional(Annotated[Text, AfterValidator(_pairs)], "text such as 'name=value, name=value'"),
    "weight_decay": NotNegative,
    "adam_beta1": BelowOne,
    "adam_beta2": BelowOne,
    "adam_epsilon": NotNegative,
    "optim_target_modules": Annotated[
        Text | Annotated[list[Text], BeforeValidator(ordered_list)] | None,
        Field(description="a name or pattern of modules, a list of them, or None"),
    ],
    "max_grad_norm": NotNegative,
    "activation_checkpointing_kwargs": _Json,
    "gradient_checkpointing_kwargs": _Json,
    "torch_compile_backend": OptionalText,
    "torch_compile_mode": OptionalText,
    "liger_kernel_config": Annotated[dict[Text, Flag] | None, Field(description="a dictionary of flags or None")],
    "neftune_noise_alpha": _OptionalNumber,
    "torch_empty_cache_steps": _OptionalCount,
    "logging_strategy": _one_of(IntervalStrategy),
    "logging_steps": NotNegative,
    "include_num_input_tokens_seen": Annotated[
        Literal["all", "non_padding", "no"] | bool, Field(description="'all', 'non_padding', 'no', True or False")
    ],
    "log_level": _choices("log_level"),
    "log_level_replica": _choices("log_level_replica"),
    "report_to": Annotated[
        Any,
        PlainValidator(_trackers),
        Field(description=f"'all', 'none', or names of trackers: {', '.join(INTEGRATION_TO_CALLBACK)}"),
    ],
    "run_name": OptionalText,
    "project": Annotated[Text, Field(description="text")],
    "trackio_space_id": OptionalText,
    "trackio_bucket_id": OptionalText,
    "trackio_static_space_id": Annotated[Text | Literal[False] | None, Field(description="text, None or False")],
    "eval_strategy": _one_of(IntervalStrategy),
    "eval_steps": _OptionalNumber,
    "eval_delay": NotNegative,
    "eval_accumulation_steps": _OptionalCount,
    "include_for_metrics": Annotated[
        list[Literal["inputs", "loss"]],
        BeforeValidator(ordered_list),
        Field(description="a list of 'inputs', 'loss' or both"),
    ],
    "save_strategy": _one_of(SaveStrategy),
    "save_steps": NotNegative,
    "save_total_limit": _optional(NotNegativeWhole, "a whole number from 0 up (0: no limit)"),
    "hub_token": OptionalText,
    "hub_model_id": OptionalText,
    "hub_strategy": _one_of(HubStrategy),
    "hub_revision": OptionalText,
    "metric_for_best_model": _optional(ClassName, "the name of a score"),
    "seed": _Seed,
    "data_seed": _optional(_Seed, f"a whole number from 0 to {_LARGEST_SEED}"),
    "accelerator_config": Annotated[
        Any,
        PlainValidator(_accelerator_config),
        Field(description="options of an AcceleratorConfig: a dictionary, JSON text or a JSON file, or None"),
    ],
    "parallelism_config": _Parallelism,
    "dataloader_num_workers": NotNegativeWhole,
    "dataloader_prefetch_factor": _OptionalCount,
    "dataloader_multiprocessing_context": _optional(
        _choices("dataloader_multiprocessing_context"), "'fork', 'spawn', 'forkserver'"
    ),
    "label_names": _Names,
    "train_sampling_strategy": _choices("train_sampling_strategy"),
    "length_column_name": Annotated[Text, Field(description="the name of a column")],
    "ddp_bucket_cap_mb": _OptionalCount,
    "ddp_backend": _optional(Annotated[Text, AfterValidator(_backend)], "the name of a backend of torch.distributed"),
    "ddp_timeout": Count,
    "fsdp": Any,  # any value is refused later, as is `deepspeed`
    "fsdp_config": _JsonOrFile,
    "deepspeed": Any,
    "debug": Annotated[
        Any,
        PlainValidator(lambda value: value if value is None else _debug_options(value)),
        Field(description=f"a list, or text with blanks, of {', '.join(repr(o.value) for o in DebugOption)}"),
    ],
    "resume_from_checkpoint": _Path,
    "local_rank": Annotated[Whole, Field(ge=-1, description="a whole number from 0 up, or -1")],
}
