from .attaching import (
    MergedModel as MergedModel,
    attach_adapters as attach_adapters,
    fresh_adapter as fresh_adapter,
    merge_adapters as merge_adapters,
)
from .fingerprint import model_identity as model_identity, weights_fingerprint as weights_fingerprint
from .task_adapter import (
    TaskAdapter as TaskAdapter,
    base_problem as base_problem,
    check_adapters as check_adapters,
    check_tasks as check_tasks,
    read_adapter as read_adapter,
    read_adapters as read_adapters,
    vouched_adapter as vouched_adapter,
)

__all__ = [
    "MergedModel",
    "TaskAdapter",
    "attach_adapters",
    "base_problem",
    "check_adapters",
    "check_tasks",
    "fresh_adapter",
    "merge_adapters",
    "model_identity",
    "read_adapter",
    "read_adapters",
    "vouched_adapter",
    "weights_fingerprint",
]
