"""The configuration of an adapter from elsewhere: plain LoRA on modules that it names, and nothing that runs code."""

from __future__ import annotations

from typing import Annotated, Any

from peft.utils import CONFIG_NAME
from pydantic import AfterValidator, Field, Strict

from ..checking import AnyNumber, Whole, checked
from ..errors import InvalidInputError
from ..storage import parse_json
from ..tuner.config import HEAD_TRAINING_TASKS, check_plain_lora, mapping_problem
from ..tuner.name_patterns import names_modules

# What in a configuration would choose modules by other means than their names.
_CHOOSING = ("exclude_modules", "layers_to_transform", "layers_pattern")


def _naming(pattern: str) -> str:
    """A pattern that names modules: a search by a foreign one may never end."""
    if not names_modules(pattern):
        raise ValueError("it is a pattern")
    return pattern


_Pattern = Annotated[str, Strict(), AfterValidator(_naming)]
_Patterns = Annotated[dict[_Pattern, Any], Field(description="names of modules, each with a number")]
_KINDS: dict[str, Any] = {
    "r": Whole,
    "lora_alpha": Whole | AnyNumber,
    "target_modules": Annotated[list[Annotated[str, Strict()]] | _Pattern, Field(description="names of modules")],
    "rank_pattern": _Patterns,
    "alpha_pattern": _Patterns,
}


def checked_config(content: bytes) -> dict[str, Any]:
    """The settings in the configuration of an adapter, which come from elsewhere.

    Args:
        content (`bytes`): The content of `adapter_config.json`.

    Raises:
        ValueError: It is not plain LoRA on modules that it names, or PEFT would run code or train a head by it.
    """
    values = parse_json(content)
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise InvalidInputError(CONFIG_NAME, values, "an object with peft_type 'LORA'")
    check_plain_lora(values, "a published adapter")
    if values.get("task_type") in HEAD_TRAINING_TASKS:
        raise InvalidInputError("task_type", values["task_type"], "a task for which PEFT does not replace the head")
    for name, kind in _KINDS.items():
        value = values.get(name, {} if kind is _Patterns else None)
        checked(f"{name} in {CONFIG_NAME}", value, kind)
    if problem := mapping_problem(values.get("auto_mapping")):
        raise ValueError(problem)
    for name in _CHOOSING:
        if values.get(name):
            raise InvalidInputError(f"{name} in {CONFIG_NAME}", values[name], "it to be left out")
    values.pop("runtime_config", None)  # concerns the machine it was written on; PEFT ignores it, too
    return values
