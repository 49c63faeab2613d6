"""The methods by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
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
            A name in `METHODS`, or `"module:Class"` of anybody's method, which is imported. A method is returned as
            it is.
        hyper_parameters (*optional*):
            Hyper-parameters of the method, in place of their defaults.

    Returns:
        [`Method`]: The method, for `method` of [`ForgettingTrainer`] or [`ContinualForgetter`].

    Raises:
        InvalidInputError: If `METHODS` lacks the name, the module or the class cannot be imported, the class is not a
            [`Method`], a hyper-parameter is unknown, or the value of one has another type.

    Example:
        ```py
        >>> from gs_lora_peft.methods import get_method
        >>> from gs_lora_peft.training import ForgettingTrainer

        >>> trainer = ForgettingTrainer(model, args, method=get_method("ffn"), **datasets)
        ```
    """
    if isinstance(name, Method) and not hyper_parameters:
        return name
    method = _method_class(name)
    known = [item.name for item in fields(method) if item.init]
    if unknown := next((given for given in hyper_parameters if given not in known), None):
        expected = f"one of {known}" if known else "none, because its hyper-parameters are GSLoraTrainingArguments"
        fix = "Leave it out." if known else "Set it in `args`."
        raise InvalidInputError(f"hyper-parameter of {name!r}", unknown, expected, fix)
    made = method(**hyper_parameters)
    check_fields(made)
    return made


def _method_class(name: Any) -> type[Method]:
    """Returns the class of a method, by its name or its place."""
    if isinstance(name, str) and name in METHODS:
        known: type[Method] = pkgutil.resolve_name(METHODS[name])
        return known
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:\w+", name):
        raise InvalidInputError("method", name, f"one of {sorted(METHODS)}, 'module:Class', or a Method")
    module, _, wanted = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), wanted, None)
    except ImportError as error:
        expected = f"'module:Class' of a module that can be imported ({error})"
        raise InvalidInputError("method", name, expected, "Check its name, and PYTHONPATH.") from error
    if not (inspect.isclass(found) and issubclass(found, Method) and isinstance(getattr(found, "name", None), str)):
        fix = "Derive it from gs_lora_peft.training.Method and give it a `name`."
        raise InvalidInputError("method", name, f"a class of {module!r} that is a Method with a name", fix)
    return found
