"""The commands that train: `gs-lora forget`, `gs-lora redo` and `gs-lora demo`.

What starts a command line or prints a help page is light to import: `options` and `help`. All else takes seconds.
"""
