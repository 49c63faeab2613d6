"""What the scores of a kind of model are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """
    How well a class is known, as one number in [0, 1].

    Args:
        prefix (`str`): stands in front of a score's name: `"acc"` in `acc_forget`, `acc_retain`, ...
        symbol (`str`): the papers' symbol: `"Acc"` in Acc_f, Acc_r, Acc_o and Acc_m.
        title (`str`): in words.
    """

    prefix: str
    symbol: str
    title: str

    def key(self, role: str) -> str:
        """The name of the score of a role (`"forget"`, `"retain"`, `"old"`, `"missing"`) or another set of classes."""
        return f"{self.prefix}_{role}"

    def symbol_of(self, role: str) -> str:
        """The papers' symbol for it: `"Acc_f"` of `"forget"`."""
        return f"{self.symbol}_{role[0]}"


ACCURACY = Measure("acc", "Acc", "accuracy")
AVERAGE_PRECISION = Measure("ap", "AP", "average precision")


def measure_of(*scores: Mapping[str, Any]) -> Measure:
    """The measure that a model was scored by, found in the names of its scores; accuracy if there are none."""
    names: Iterable[str] = (name for found in scores for name in found)
    return AVERAGE_PRECISION if any(name.startswith(f"{AVERAGE_PRECISION.prefix}_") for name in names) else ACCURACY
