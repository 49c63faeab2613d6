"""Publishing a run, fetching one, and what else is done with repositories."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
