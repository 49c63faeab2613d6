"""From labelled rows to paired batches: splits, class names, boxes, images, sampling and collation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
