"""Models that `torch.compile` has wrapped."""

from __future__ import annotations

from typing import Any


def uncompiled(model: Any) -> Any:
    """The model inside of what `torch.compile` made; anything else as it is.

    Both share their modules, so that what is done to one acts in the other. The names of modules are those of the one
    inside: with the wrapper's they would fit no model that is not compiled.
    """
    return getattr(model, "_orig_mod", model)
