"""The versions of what computes."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("gs-lora-peft", "peft", "transformers", "torch", "accelerate", "datasets", "safetensors", "numpy")


def library_versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
