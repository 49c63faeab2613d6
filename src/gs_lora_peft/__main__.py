"""`python -m gs_lora_peft` is `gs-lora`."""

from __future__ import annotations

from .cli import main

main()
