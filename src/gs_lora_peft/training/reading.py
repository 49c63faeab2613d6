"""Which training options a method reads: those of the losses, of the groups of an adapter, and of all trainings."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..errors import InvalidInputError
from ..objectives import LossArguments
from .arguments import GSLoraTrainingArguments
from .recipes import default_of

# What objectives are built from.
LOSS_OPTIONS = frozenset(LossArguments.__annotations__)

# What drives groups to zero, or averages them: sparsity, its choice of groups, and the moving average.
GROUP_OPTIONS = frozenset(
    item.name
    for item in fields(GSLoraTrainingArguments)
    if item.name.startswith(("sparsity", "select_groups", "ema_"))
)

_RECIPE, _OF_RECIPE = "recipe", "depth_weight"


def unread_options(reads: Collection[str]) -> list[str]:
    """Returns the training options that act with some methods, but not with one that reads only these.

    Args:
        reads (`Collection[str]`):
            `Method.reads`, a part of `LOSS_OPTIONS` and `GROUP_OPTIONS`. The recipe chooses forgetting in depth, and
            acts where that does.
    """
    unread = (LOSS_OPTIONS | GROUP_OPTIONS).difference(reads)
    # The recipe first: it sets others.
    return [*([_RECIPE] if _OF_RECIPE in unread else []), *sorted(unread)]


def only_read(options: Mapping[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """Returns options that several methods share, without those that one of them does not read.

    Args:
        options (`Mapping[str, Any]`):
            Training arguments by name.
        reads (`Collection[str]`):
            As in [`unread_options`].
    """
    unread = unread_options(reads)
    return {name: value for name, value in options.items() if name not in unread}


def check_read(args: GSLoraTrainingArguments, reads: Collection[str], method: str) -> None:
    """Checks that options which the method does not read have their defaults.

    Args:
        args ([`GSLoraTrainingArguments`]):
            The arguments.
        reads (`Collection[str]`):
            As in [`unread_options`].
        method (`str`):
            Name of the method.

    Raises:
        InvalidInputError: If one has another value, which would have no effect.
    """
    defaults = {item.name: item.default for item in fields(GSLoraTrainingArguments) if item.default is not MISSING}
    for name in unread_options(reads):
        default = default_of(name, args.recipe) if defaults[name] is None else defaults[name]
        if (value := getattr(args, name)) != default:
            expected = f"{_shown(default)}, its default: the method {method!r} does not read it"
            raise InvalidInputError(name, value, expected, "Leave it out.")


def warn_not_held(missing: Collection[int], reads: Collection[str], method: str) -> None:
    """Warns that a method does not hold classes to keep that have no data, by distillation.

    Args:
        missing (`Collection[int]`):
            The classes, given as `missing_classes` or not; without any, there is nothing to warn of.
        reads (`Collection[str]`):
            As in [`unread_options`].
        method (`str`):
            Name of the method.
    """
    if missing and "distillation_weight" not in reads:
        warnings.warn(
            f"{len(missing)} class(es) to keep have no training data (`missing_classes`), and nothing in the method "
            f"{method!r} holds them: they may be forgotten, too; `acc_missing` tells. "
            "Use 'gs_lora', which holds them by distillation.",
            stacklevel=4,
        )


def _shown(default: Any) -> str:
    return repr(int(default)) if isinstance(default, float) and default.is_integer() else repr(default)
