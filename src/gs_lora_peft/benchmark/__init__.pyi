from .publishing import push_results as push_results
from .results import BenchmarkResults as BenchmarkResults
from .running import run_benchmark as run_benchmark
from .settings import (
    AuditSettings as AuditSettings,
    BenchmarkConfig as BenchmarkConfig,
    Entry as Entry,
    SearchSettings as SearchSettings,
    Setting as Setting,
)

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
