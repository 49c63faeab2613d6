"""Settings that belong together, by the name of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from transformers import TrainingArguments

from ..tuner import GSLoraConfig

RecipeName = Literal["fast", "deep"]

# Measured in docs/audit.md. Sparsity leaves blocks as they were, and with them what they tell apart.
_TRAINING: dict[RecipeName, dict[str, Any]] = {
    "fast": {},
    "deep": {"depth_weight": 5.0, "depth_retain_weight": 5.0, "sparsity": "none", "num_train_epochs": 6.0},
}

# To move the states of every block takes more than rank 8 and a scaling of 1/8.
_ADAPTER: dict[RecipeName, dict[str, Any]] = {"fast": {}, "deep": {"r": 32, "lora_alpha": 32}}


def apply_recipe(args: TrainingArguments, recipe: RecipeName) -> None:
    """Sets the options of a recipe, except those that are not at their defaults.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments, in place.
        recipe (`"fast"` or `"deep"`):
            The recipe.
    """
    defaults = {name: item.default for name, item in type(args).__dataclass_fields__.items()}
    for name, value in _TRAINING[recipe].items():
        if getattr(args, name) == defaults[name]:
            setattr(args, name, value)


def adapter_of_recipe(recipe: RecipeName, **given: Any) -> GSLoraConfig:
    """Returns the configuration of the adapter that suits a recipe.

    Args:
        recipe (`"fast"` or `"deep"`):
            The recipe: rank 8 and a scaling of 1/8, or rank 32 and a scaling of 1.
        given (`Any`):
            Options of [`GSLoraConfig`]; `None` for `r` and `lora_alpha` is what the recipe says.
    """
    chosen = {name: value for name, value in given.items() if value is not None or name not in ("r", "lora_alpha")}
    return GSLoraConfig(**{**_ADAPTER[recipe], **chosen})
