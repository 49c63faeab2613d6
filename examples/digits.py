"""Handwritten digits, and a small Vision Transformer pre-trained on them: the default of forget.py, for scripts."""

from gs_lora_peft.cli import DIGITS_RECIPE as RECIPE, load_digits, pretrained_digits_vit as pretrained_vit

__all__ = ["RECIPE", "load_digits", "pretrained_vit"]
