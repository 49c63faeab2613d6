"""Names of the scores of a kind of model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricName:
    """Names of a score in [0, 1] that says how well a class is known.

    Args:
        prefix (`str`):
            Start of the keys of the scores: `"acc"` in `acc_forget`, `acc_retain`, …
        symbol (`str`):
            The papers' symbol: `"Acc"` in Acc_f, Acc_r, Acc_o and Acc_m.
        title (`str`):
            The score in words, e.g. `"average precision"`.
    """

    prefix: str
    symbol: str
    title: str

    def key(self, role: str) -> str:
        """Key of the score of a role (`"forget"`, `"retain"`, `"old"`, `"missing"`) or another set of classes."""
        return f"{self.prefix}_{role}"

    def symbol_of(self, role: str) -> str:
        """The papers' symbol for the score of a role: `"Acc_f"` for `"forget"`."""
        return f"{self.symbol}_{role[0]}"


ACCURACY = MetricName("acc", "Acc", "accuracy")
AVERAGE_PRECISION = MetricName("ap", "AP", "average precision")


def measure_of(*scores: Mapping[str, Any]) -> MetricName:
    """Names of the measure behind scores, recognised by their keys; accuracy without scores."""
    names: Iterable[str] = (name for found in scores for name in found)
    return AVERAGE_PRECISION if any(name.startswith(f"{AVERAGE_PRECISION.prefix}_") for name in names) else ACCURACY
