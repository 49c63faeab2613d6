from .attached import updates_beside as updates_beside, with_tasks as with_tasks
from .attaching import (
    attach_adapters as attach_adapters,
    check_adapters as check_adapters,
    fresh_adapter as fresh_adapter,
)
from .fingerprint import model_identity as model_identity, weights_fingerprint as weights_fingerprint
from .merging import (
    MergedModel as MergedModel,
    check_changes as check_changes,
    merge_changes as merge_changes,
)
from .task_adapter import (
    TaskAdapter as TaskAdapter,
    base_mismatch as base_mismatch,
    read_adapter as read_adapter,
)
from .task_files import (
    TaskChange as TaskChange,
    check_tasks as check_tasks,
    read_adapters as read_adapters,
    read_changes as read_changes,
    verified_change as verified_change,
)
from .weight_difference import (
    WeightDifference as WeightDifference,
    changed_values as changed_values,
    difference_groups as difference_groups,
    own_weights as own_weights,
    write_difference as write_difference,
)

__all__ = [
    "MergedModel",
    "TaskAdapter",
    "TaskChange",
    "WeightDifference",
    "attach_adapters",
    "base_mismatch",
    "changed_values",
    "check_adapters",
    "check_changes",
    "check_tasks",
    "difference_groups",
    "fresh_adapter",
    "merge_changes",
    "model_identity",
    "own_weights",
    "read_adapter",
    "read_adapters",
    "read_changes",
    "updates_beside",
    "verified_change",
    "weights_fingerprint",
    "with_tasks",
    "write_difference",
]
