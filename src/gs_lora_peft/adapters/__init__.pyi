from .attaching import MergedModel as MergedModel
from .attaching import attach_adapters as attach_adapters
from .attaching import fresh_adapter as fresh_adapter
from .attaching import merge_adapters as merge_adapters
from .fingerprint import model_identity as model_identity
from .fingerprint import weights_fingerprint as weights_fingerprint
from .task_adapter import TaskAdapter as TaskAdapter
from .task_adapter import base_problem as base_problem
from .task_adapter import check_adapters as check_adapters
from .task_adapter import check_tasks as check_tasks
from .task_adapter import read_adapter as read_adapter
from .task_adapter import read_adapters as read_adapters
from .task_adapter import vouched_adapter as vouched_adapter

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
