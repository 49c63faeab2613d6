from .parts import (
    AuditSettings as AuditSettings,
    Entry as Entry,
    SearchSettings as SearchSettings,
    Setting as Setting,
)
from .publishing import push_results as push_results
from .results import BenchmarkResults as BenchmarkResults
from .running import run_benchmark as run_benchmark
from .settings import BenchmarkConfig as BenchmarkConfig

__all__ = [
    "AuditSettings",
    "BenchmarkConfig",
    "BenchmarkResults",
    "Entry",
    "SearchSettings",
    "Setting",
    "push_results",
    "run_benchmark",
]
