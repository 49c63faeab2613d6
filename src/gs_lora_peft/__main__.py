"""`python -m gs_lora_peft` is `gs-lora`."""

from .cli import main

main()
