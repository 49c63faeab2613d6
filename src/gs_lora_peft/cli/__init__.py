"""The program `gs-lora` for finished runs, and the parts that scripts share.

Names are imported on first use: a shell starts the program to complete a word, and a help page must not take seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
