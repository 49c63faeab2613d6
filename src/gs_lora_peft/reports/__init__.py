"""Tables with several renderers, the style of figures, and cards from templates."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
