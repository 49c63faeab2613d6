"""Scores of how well a model forgot and how well it kept the rest."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .boxes import references_from_labels, references_from_objects
from .detection import detection_scores
from .scores import continual_forgetting_scores, h_mean
from .verification import verification_by_role, verification_scores

if TYPE_CHECKING:
    from .continual_detection import ContinualDetection
    from .continual_forgetting import ContinualForgetting

__all__ = [
    "ContinualDetection",
    "ContinualForgetting",
    "continual_forgetting_scores",
    "detection_scores",
    "h_mean",
    "references_from_labels",
    "references_from_objects",
    "verification_by_role",
    "verification_scores",
]

# `evaluate` takes seconds to import, so the metrics built on it are imported on first use.
_LAZY = {"ContinualDetection": "continual_detection", "ContinualForgetting": "continual_forgetting"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
