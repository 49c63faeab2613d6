"""What a metric of forgetting is told: which class has which role, and how the model did before the task."""

from __future__ import annotations

from typing import Any

from .scores import class_roles, fraction


def checked_settings(before: str, **settings: Any) -> dict[str, Any]:
    """The same settings, classes as sorted lists: an iterator would be used up by the first computation.

    Args:
        before (`str`): Name of the setting that is a score before the task; all others are classes of a role.
    """
    classes = {name: ids for name, ids in settings.items() if name != before}
    roles = class_roles(**{name.removesuffix("_classes"): ids for name, ids in classes.items()})
    return {
        **dict.fromkeys(classes),
        **{f"{role}_classes": sorted(ids) for role, ids in roles.items()},
        before: fraction(settings[before], before),
    }


def settings_to_compute(own: dict[str, Any], before: str, what: str, **given: Any) -> dict[str, Any]:
    """The settings of the constructor, replaced by what `compute` was given.

    Args:
        own (`dict`): From [`checked_settings`].
        before (`str`): As there.
        what (`str`): What the classes are called, for the error.

    Raises:
        ValueError: Neither says what the task forgets, or a setting cannot be used.
    """
    settings = checked_settings(before, **own | {name: value for name, value in given.items() if value is not None})
    if settings["forget_classes"] is None:
        raise ValueError(
            f"forget_classes is None; expected the ids of the {what} the task forgets. Give them to the "
            "constructor or to compute; an empty list scores a model that has forgotten nothing."
        )
    return settings
