"""Publishing a run."""

from .publish import push_to_hub

__all__ = ["push_to_hub"]
