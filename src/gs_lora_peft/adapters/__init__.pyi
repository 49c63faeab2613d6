from .attaching import (
    MergedModel as MergedModel,
    attach_adapters as attach_adapters,
    check_adapters as check_adapters,
    fresh_adapter as fresh_adapter,
    merge_adapters as merge_adapters,
)
from .fingerprint import model_identity as model_identity, weights_fingerprint as weights_fingerprint
from .task_adapter import (
    TaskAdapter as TaskAdapter,
    base_mismatch as base_mismatch,
    check_tasks as check_tasks,
    read_adapter as read_adapter,
    read_adapters as read_adapters,
    verified_adapter as verified_adapter,
)

__all__ = [
    "MergedModel",
    "TaskAdapter",
    "attach_adapters",
    "base_mismatch",
    "check_adapters",
    "check_tasks",
    "fresh_adapter",
    "merge_adapters",
    "model_identity",
    "read_adapter",
    "read_adapters",
    "verified_adapter",
    "weights_fingerprint",
]
