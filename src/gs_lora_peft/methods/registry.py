"""The methods by name."""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from typing import Any

from ..checking import check_fields
from ..errors import InvalidInputError
from ..training import Method

_UNLEARNING = "gs_lora_peft.methods.unlearning"

# "module:class", imported on first use.
METHODS: dict[str, str] = {
    "der": "gs_lora_peft.methods.continual.replay:DER",
    "derpp": "gs_lora_peft.methods.continual.replay:DERpp",
    "ewc": "gs_lora_peft.methods.continual.penalties:EWC",
    "fdr": "gs_lora_peft.methods.continual.replay:FDR",
    "bad_teacher": f"{_UNLEARNING}.bad_teacher:BadTeacher",
    "boundary_shrink": f"{_UNLEARNING}.boundary_shrink:BoundaryShrink",
    "delete": f"{_UNLEARNING}.delete:Delete",
    "ffn": "gs_lora_peft.methods.ffn_finetuning:FFNFinetuning",
    "finetune": f"{_UNLEARNING}.finetuning:Finetune",
    "gradient_ascent": f"{_UNLEARNING}.ascent:GradientAscent",
    "gs_lora": "gs_lora_peft.methods.gs_lora:GSLora",
    "l2": "gs_lora_peft.methods.continual.penalties:L2",
    "lirf": "gs_lora_peft.methods.continual.lirf:LIRF",
    "lwf": "gs_lora_peft.methods.continual.lwf:LwF",
    "mas": "gs_lora_peft.methods.continual.penalties:MAS",
    "fg_oriu": "gs_lora_peft.methods.adapting.fg_oriu:FGOrIU",
    "gs_lora": "gs_lora_peft.methods.gs_lora:GSLora",
    "gs_lora_deep": "gs_lora_peft.methods.adapting.published:GSLoraDeep",
    "gs_lora_pp_published": "gs_lora_peft.methods.adapting.published:GSLoraPPPublished",
    "gs_lora_published": "gs_lora_peft.methods.adapting.published:GSLoraPublished",
    "lfssd": "gs_lora_peft.methods.editing.dampening:LFSSD",
    "lora": "gs_lora_peft.methods.adapting.published:Lora",
    "munba": "gs_lora_peft.methods.editing.munba:MUNBa",
    "random_labels": "gs_lora_peft.methods.random_labels:RandomLabels",
    "retrain": "gs_lora_peft.methods.continual.retrain:Retrain",
    "salun": "gs_lora_peft.methods.random_labels:SalUn",
    "scrub": "gs_lora_peft.methods.continual.scrub:SCRUB",
    "scrub_s": "gs_lora_peft.methods.continual.scrub:SCRUBS",
    "l1_sparse": f"{_UNLEARNING}.finetuning:L1Sparse",
    "lotus": f"{_UNLEARNING}.lotus:LoTUS",
    "neggrad_plus": f"{_UNLEARNING}.ascent:NegGradPlus",
    "npo": f"{_UNLEARNING}.preference:NPO",
    "random_labels": f"{_UNLEARNING}.random_labels:RandomLabels",
    "salun": f"{_UNLEARNING}.random_labels:SalUn",
    "simnpo": f"{_UNLEARNING}.preference:SimNPO",
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
