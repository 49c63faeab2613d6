"""Settings that belong together: those of a recipe, and those that act only beside others."""

from __future__ import annotations

from typing import Any, Literal

from transformers import TrainingArguments

from ..errors import InvalidInputError
from ..tuner import GSLoraConfig

RecipeName = Literal["fast", "deep"]

# "deep" is measured in docs/audit.md. Sparsity leaves blocks as they were, and with them what they tell apart.
_TRAINING: dict[RecipeName, dict[str, Any]] = {
    "fast": {"depth_weight": 0.0, "depth_retain_weight": 0.0, "sparsity": "proximal", "num_train_epochs": 15.0},
    "deep": {"depth_weight": 5.0, "depth_retain_weight": 5.0, "sparsity": "none", "num_train_epochs": 6.0},
}

# To move the states of every block takes more than rank 8 and a scaling of 1/8.
_ADAPTER: dict[RecipeName, dict[str, Any]] = {"fast": {}, "deep": {"r": 32, "lora_alpha": 32}}


def apply_recipe(args: TrainingArguments, recipe: RecipeName) -> None:
    """Sets the options of a recipe, except those that are set.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments, in place. `None` is not set.
        recipe (`"fast"` or `"deep"`):
            The recipe.
    """
    for name, value in _TRAINING[recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def default_of(name: str, recipe: RecipeName) -> Any:
    """Returns the value of an option that is `None` until a recipe sets it."""
    return _TRAINING[recipe][name]


def check_needed(args: Any) -> None:
    """Checks that options which act only beside others have them.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments, after [`apply_recipe`].

    Raises:
        InvalidInputError: If one of them would do nothing.
    """
    prototypes = args.prototype_forget_weight or args.prototype_retain_weight
    # The second name is that of newer versions.
    checkpoints = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    if args.recipe == "deep" and not args.depth_weight:
        expected = "more than 0 with recipe='deep', which is nothing without it"
        fix = "Choose recipe='fast', or make new arguments instead of copying those of another recipe."
        raise InvalidInputError("depth_weight", args.depth_weight, expected, fix)
    for name, acts, expected, fix in (
        (
            "prototype_augmentations",
            prototypes,
            "0 without prototypes, which average the views",
            "Set `prototype_forget_weight` or `prototype_retain_weight`",
        ),
        ("depth_retain_weight", args.depth_weight, "0 without forgetting in depth", "Set `depth_weight`"),
        (
            "depth_radius",
            args.depth_weight and not checkpoints,
            "0 without forgetting in depth, and with gradient checkpointing",
            "Set `depth_weight` and leave `gradient_checkpointing` off",
        ),
        (
            "depth_target",
            args.depth_weight or args.depth_target == "sample",
            "'sample' without depth",
            "Set `depth_weight`",
        ),
        (
            "depth_blocks",
            args.depth_weight or args.depth_blocks == "auto",
            "'auto' without depth",
            "Set `depth_weight`",
        ),
        ("ema_start_epoch", args.ema_decay, "0 without an average to start", "Set `ema_decay`, e.g. to 0.9"),
    ):
        if (value := getattr(args, name)) and not acts:
            raise InvalidInputError(name, value, expected, f"{fix}, or leave it out.")


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
