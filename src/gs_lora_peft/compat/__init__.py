"""What is private in PEFT, transformers and accelerate: when a new version breaks this package, it breaks here."""

from importlib import import_module
from typing import Any

import lazy_loader

_attached, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    # PEFT first: as soon as it is imported, the tuner is, which needs names of this room. Were PEFT imported by a file
    # of this room, the tuner would find that file half loaded.
    if name in __all__ and name != "register_face_model":
        import_module("peft")
    return _attached(name)
