"""Forgetting the categories of a detector."""

from .objective import Background, DetectionObjective, is_detector

__all__ = ["Background", "DetectionObjective", "is_detector"]
