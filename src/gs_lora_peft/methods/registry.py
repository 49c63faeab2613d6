"""The methods by name."""

from __future__ import annotations

import pkgutil
from dataclasses import fields
from typing import Any

from ..errors import InvalidInputError
from ..training import Method

# "module:class", imported when it is asked for.
METHODS: dict[str, str] = {
    "ffn": "gs_lora_peft.methods.ffn_finetuning:FFNFinetuning",
    "gs_lora": "gs_lora_peft.methods.gs_lora:GSLora",
}


def get_method(name: str | Method, **hyper_parameters: Any) -> Method:
    """A way to forget, by its name.

    Args:
        name (`str` or [`Method`]):
            A name in `METHODS`; a method is given back as it is.
        hyper_parameters (*optional*):
            Those of the method that are not to have their defaults.

    Raises:
        InvalidInputError: If no method is called so, or it has no such hyper-parameter.

    Example:
        ```py
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
        expected = f"one of {known}" if known else "none: all that it has are arguments of the trainer"
        raise InvalidInputError(f"hyper-parameter of {name!r}", unknown, expected)
    return method(**hyper_parameters)
