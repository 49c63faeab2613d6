"""Processes that carry out the runs of a benchmark, and what each of them keeps."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from .cells import CellRunner, Row
from .parts import ORIGINAL, RETRAINED
from .plan import Bench, Cell
from .search import Search
from .settings import BenchmarkConfig


@dataclass
class Worker:
    """What a process keeps from job to job."""

    bench: Bench

    def __post_init__(self) -> None:
        self.runner = CellRunner(self.bench)

    def is_searched(self, cell: Cell) -> bool:
        """Whether a search chooses the settings of a run."""
        return self.bench.config.search is not None and cell.method not in (ORIGINAL, RETRAINED)

    def found(self, cell: Cell) -> dict[str, Any] | None:
        """Returns what the search found for a run; `None` without a search, or before its end."""
        if not self.is_searched(cell):
            return None
        best = Search(self.bench, cell.method, self.bench.scenarios[cell.scenario]).best()
        return None if best is None else dict(best["options"])

    def finished(self, cell: Cell) -> list[Row] | None:
        """Returns the rows of a run that is done; `None` if it is not."""
        found = self.found(cell)
        return None if found is None and self.is_searched(cell) else self.runner.finished(cell, found)


_worker: Worker | None = None


def process_count(config: BenchmarkConfig) -> int:
    """Returns the number of runs at a time."""
    if config.processes != "auto":
        return config.processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if torch.accelerator.is_available() else cores


class Pool:
    """Carries out jobs in this process, or in several others, each with a copy of the benchmark."""

    def __init__(self, bench: Bench):
        self.bench, self.count = bench, process_count(bench.config)
        self._pool: ProcessPoolExecutor | None = None
        self._own: Worker | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        gc.unfreeze()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def carry_out(self, jobs: Iterable[partial]) -> Iterator[str]:
        jobs = list(jobs)
        if self.count == 1:
            self._own = self._own or Worker(self.bench)
            for job in jobs:
                yield _done(job, self._own)
            return
        if jobs and self._pool is None:
            threads = max(1, torch.get_num_threads() // self.count)
            self._pool = ProcessPoolExecutor(
                self.count,
                multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(pickle.dumps(self.bench), threads),
            )
        waiting = [self._pool.submit(_carry_out, job) for job in jobs] if self._pool else []
        for done in as_completed(waiting):
            yield done.result()


def _start(pickled: bytes, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = Worker(pickle.loads(pickled))


def _carry_out(job: partial) -> str:
    assert _worker is not None
    return _done(job, _worker)


def _done(job: partial, worker: Worker) -> str:
    """Carries out a job. What stays behind it, modules above all, is then out of the way of the garbage collector.

    Every training asks for a full collection, which would otherwise take a tenth of the time of a short one.
    """
    with quiet():
        said = str(job(worker))
    gc.collect()
    gc.freeze()
    return said


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what every run of hundreds would say: warnings that classes are not forgotten, bars of files."""
    own, level = logging.getLogger("gs_lora_peft"), logging.getLogger("gs_lora_peft").level
    of_transformers, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    own.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # Without a bar, the Trainer prints its logs.
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        own.setLevel(level)
        transformers_logging.set_verbosity(of_transformers)
        if bars:
            transformers_logging.enable_progress_bar()
