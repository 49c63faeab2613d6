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
    name: f"{__package__}.{place}"
    for name, place in {
        "bad_teacher": "unlearning.bad_teacher:BadTeacher",
        "boundary_shrink": "unlearning.boundary_shrink:BoundaryShrink",
        "delete": "unlearning.delete:Delete",
        "der": "continual.replay:DER",
        "derpp": "continual.replay:DERpp",
        "ewc": "continual.penalties:EWC",
        "fdr": "continual.replay:FDR",
        "ffn": "ffn_finetuning:FFNFinetuning",
        "fg_oriu": "adapting.fg_oriu:FGOrIU",
        "finetune": "unlearning.finetuning:Finetune",
        "gradient_ascent": "unlearning.ascent:GradientAscent",
        "gs_lora": "gs_lora:GSLora",
        "gs_lora_deep": "adapting.published:GSLoraDeep",
        "gs_lora_pp_published": "adapting.published:GSLoraPPPublished",
        "gs_lora_published": "adapting.published:GSLoraPublished",
        "l1_sparse": "unlearning.finetuning:L1Sparse",
        "l2": "continual.penalties:L2",
        "lfssd": "editing.dampening:LFSSD",
        "lirf": "continual.lirf:LIRF",
        "lora": "adapting.published:Lora",
        "lotus": "unlearning.lotus:LoTUS",
        "lwf": "continual.lwf:LwF",
        "mas": "continual.penalties:MAS",
        "munba": "editing.munba:MUNBa",
        "neggrad_plus": "unlearning.ascent:NegGradPlus",
        "npo": "unlearning.preference:NPO",
        "random_labels": "unlearning.random_labels:RandomLabels",
        "retrain": "continual.retrain:Retrain",
        "salun": "unlearning.random_labels:SalUn",
        "scrub": "continual.scrub:SCRUB",
        "scrub_s": "continual.scrub:SCRUBS",
        "sfron": "editing.sfron:SFRon",
        "simnpo": "unlearning.preference:SimNPO",
        "ssd": "editing.dampening:SSD",
        "task_arithmetic": "editing.task_arithmetic:TaskArithmetic",
        "unsir": "editing.unsir:UNSIR",
    }.items()
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
