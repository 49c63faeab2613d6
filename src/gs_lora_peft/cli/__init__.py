"""The command `gs-lora`: what is done with finished runs, from a shell.

What takes time to import is imported inside of the commands: a shell starts the program to complete a word.
"""

from .program import main

__all__ = ["main"]
