"""The methods by name."""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from typing import Any

from ..checking import check_fields
from ..errors import InvalidInputError
from ..training import Method

# "module:class", imported on first use.
METHODS: dict[str, str] = {
    "ffn": "gs_lora_peft.methods.ffn_finetuning:FFNFinetuning",
    "fg_oriu": "gs_lora_peft.methods.adapting.fg_oriu:FGOrIU",
    "gs_lora": "gs_lora_peft.methods.gs_lora:GSLora",
    "gs_lora_deep": "gs_lora_peft.methods.adapting.published:GSLoraDeep",
    "gs_lora_pp_published": "gs_lora_peft.methods.adapting.published:GSLoraPPPublished",
    "gs_lora_published": "gs_lora_peft.methods.adapting.published:GSLoraPublished",
    "lfssd": "gs_lora_peft.methods.editing.dampening:LFSSD",
    "lora": "gs_lora_peft.methods.adapting.published:Lora",
    "munba": "gs_lora_peft.methods.editing.munba:MUNBa",
    "random_labels": "gs_lora_peft.methods.random_labels:RandomLabels",
    "salun": "gs_lora_peft.methods.random_labels:SalUn",
    "sfron": "gs_lora_peft.methods.editing.sfron:SFRon",
    "ssd": "gs_lora_peft.methods.editing.dampening:SSD",
    "task_arithmetic": "gs_lora_peft.methods.editing.task_arithmetic:TaskArithmetic",
    "unsir": "gs_lora_peft.methods.editing.unsir:UNSIR",
}


def get_method(name: str | Method, **hyper_parameters: Any) -> Method:
    """Returns a method by its name.

    Args:
        name (`str` or [`Method`]):
            A name in `METHODS`. A method is returned as it is.
        hyper_parameters (*optional*):
            Hyper-parameters of the method, in place of their defaults.

    Returns:
        [`Method`]: The method, for `method` of [`ForgettingTrainer`] or [`ContinualForgetter`].

    Raises:
        InvalidInputError: If there is no method of this name, it has no such hyper-parameter, or the value of one has
            another type.

    Example:
        ```py
        >>> from gs_lora_peft.methods import get_method
        >>> from gs_lora_peft.training import ForgettingTrainer

        >>> trainer = ForgettingTrainer(model, args, method=get_method("ffn"), **datasets)
        ```
    """
    if isinstance(name, Method) and not hyper_parameters:
        return name
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidInputError("method", name, f"one of {sorted(METHODS)}, or a Method")
    method: type[Method] = pkgutil.resolve_name(METHODS[name])
    known = [item.name for item in fields(method) if item.init]
    if unknown := next((given for given in hyper_parameters if given not in known), None):
        expected = f"one of {known}" if known else "none, because its hyper-parameters are GSLoraTrainingArguments"
        fix = "Leave it out." if known else "Set it in `args`."
        raise InvalidInputError(f"hyper-parameter of {name!r}", unknown, expected, fix)
    made = method(**hyper_parameters)
    check_fields(made)
    return made
