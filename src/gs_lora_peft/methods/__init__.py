"""Methods, which are ways to forget: what trains, on which loss, with which callbacks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
