"""Rival methods to compare with."""

from .ffn_finetuning import FFNFineTuner

__all__ = ["FFNFineTuner"]
