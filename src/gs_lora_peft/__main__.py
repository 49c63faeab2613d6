"""Lets `python -m gs_lora_peft` run the command `gs-lora`."""

from __future__ import annotations

from .cli import main

main()
