"""The program `gs-lora`, and its parts for scripts.

Names are imported on first use: a shell starts the program to complete a word, and a help page must not take seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
