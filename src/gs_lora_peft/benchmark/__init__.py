"""Methods side by side: methods × settings × seeds, each trained, scored and audited, in tables and figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
