"""Private parts of PEFT, transformers and accelerate. When a new version breaks this package, it breaks here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
