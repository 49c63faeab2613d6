"""Carrying out a benchmark: what is missing, over several processes, with progress; a killed one goes on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..io import exclusive_lock
from .cells import Row, is_error
from .parts import ORIGINAL, RETRAINED
from .plan import Bench, Cell
from .processes import Pool, Worker
from .restoring import restore_finished
from .results import RUN, SEARCH, BenchmarkResults
from .search import CHOSEN, Search, search_scenario
from .settings import BenchmarkConfig
from .yardsticks import check_audit, retrained

logger = logging.getLogger(__name__)


def run_benchmark(
    config: BenchmarkConfig,
    model: PreTrainedModel,
    dataset: Mapping[str, Dataset],
    *,
    processing_class: Any = None,
    data_collator: Callable | None = None,
    whole: BenchmarkConfig | None = None,
    retry_failed: bool = False,
    disable_tqdm: bool = False,
) -> BenchmarkResults:
    """Trains, scores and audits every method in every setting with every seed.

    First come the retrained models and the original, whose attacks all audits share, then the search, then the runs.
    Every finished search trial, request and run is kept in `config.output`: the same call after a kill goes on, and
    one with further methods, seeds or settings carries out these alone. A run that fails is a row of its own; an
    audit that fails on the original, and would on every run, ends the benchmark.

    Args:
        config ([`BenchmarkConfig`]):
            What is compared.
        model (`transformers.PreTrainedModel`):
            The base model, without adapters. It knows all classes, and is not changed.
        dataset (`datasets.DatasetDict` or `dict`):
            Labelled samples with the class ids of the model: `train`, and `test` or another name of
            [`evaluation_split`], which only the final scores and the audit use.
        processing_class (*optional*):
            As in [`ContinualForgetter`].
        data_collator (`Callable`, *optional*):
            As in [`ContinualForgetter`]. Several processes need one that can be pickled.
        whole ([`BenchmarkConfig`], *optional*):
            The benchmark that `config` is a part of, with more methods or seeds. Results also have those of its runs
            that are done, so that a part adds to them.
        retry_failed (`bool`, *optional*, defaults to `False`):
            Whether runs, and trials of the search, that ended with an error are carried out again.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress.

    Returns:
        [`BenchmarkResults`]: All rows, with tables and figures; also written to `config.output`.

    Raises:
        InvalidInputError: Before any work, if model, data and configuration do not fit each other.
        BlockingIOError: If another process works in the folder.

    Example:
        ```py
        >>> config = BenchmarkConfig.read("digits.yaml")
        >>> results = run_benchmark(config, model, dataset)
        >>> print(results.table("continual").to_markdown())
        ```
    """
    bench = Bench(config, model, dataset, processing_class, data_collator)
    searches = _searches(bench)  # refuses what cannot be searched
    _warn_of_short_searches(bench)
    if config.audit is not None:
        audited = [scenario for scenario in bench.scenarios.values() if bench.audit_of(scenario.name)]
        given = config.audit.given is not None  # each setting then has its own models
        alike = {scenario.name if given else tuple(scenario.forgotten): scenario for scenario in audited}
        for scenario in alike.values():
            check_audit(bench, scenario)
    bench.output.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(bench.output / "benchmark.lock"), Pool(bench) as pool:
        restore_finished(bench.output)
        if retry_failed:
            _remove_failed(bench)
        worker = Worker(bench)
        runs = [partial(_cell, cell=cell) for cell in (*yardstick_cells(bench), *bench.cells())]
        # Later phases use what the former ones have found.
        phases = [
            _retraining(bench),
            # The audit of the original is one long job, which no trial needs: the other processes search meanwhile.
            [
                *(job for job in runs if job.keywords["cell"].method == ORIGINAL),
                *{_search_of(bench, job).name: job for job in searches}.values(),
            ],
            [job for job in runs if job.keywords["cell"].method != ORIGINAL],
        ]
        todo = [[job for job in phase if not job.func(worker, **job.keywords, only_look=True)] for phase in phases]
        total = sum(map(len, todo))
        with tqdm(total=total, disable=disable_tqdm, desc="benchmark", smoothing=0.1, **_output()) as bar:
            for jobs in todo:
                for said in pool.carry_out(jobs):
                    bar.set_postfix_str(said, refresh=False)
                    bar.update()
        return collect(bench if whole is None else Bench(whole, model, dataset, processing_class, data_collator))


class _Lines:
    """A file that gets the states of a bar as lines."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, text: str) -> None:
        if state := text.strip():
            self.file.write(f"{state}\n")

    def flush(self) -> None:
        self.file.flush()


def _output() -> dict[str, Any]:
    """A bar in a terminal; elsewhere a line of a log, twice a minute."""
    return {} if sys.stderr.isatty() else {"file": _Lines(sys.stderr), "mininterval": 30, "ncols": 119}


# Jobs. With `only_look` they say whether they are done.


def _retrain(worker: Worker, scenario: str, number: int, only_look: bool = False) -> Any:
    if only_look:
        return False  # quick if the cache has it
    retrained(worker.bench, worker.bench.scenarios[scenario], number)
    return f"retrained model for {scenario}"


def _search(worker: Worker, method: str, scenario: str, only_look: bool = False) -> Any:
    search = Search(worker.bench, method, worker.bench.scenarios[scenario])
    if only_look:
        return search.trials() is not None
    search.carry_out()
    return f"search for {method}, {scenario}"


def _cell(worker: Worker, cell: Cell, only_look: bool = False) -> Any:
    if only_look:
        return worker.finished(cell) is not None
    worker.runner.carry_out(cell, worker.found(cell))
    return f"{cell.method}, {cell.scenario}, seed {cell.seed}"


def _retraining(bench: Bench) -> list[partial]:
    audit, worker = bench.config.audit, Worker(bench)
    if audit is None or audit.given is not None:
        return []
    count = audit.references + audit.controls
    if all(_cell(worker, cell, only_look=True) for cell in (*yardstick_cells(bench), *bench.cells())):
        return []
    # Retrained models depend on the forgotten classes alone: settings that share them share the models.
    scenarios = {tuple(scenario.forgotten): name for name, scenario in reversed(bench.scenarios.items())}
    return [partial(_retrain, scenario=name, number=number) for number in range(count) for name in scenarios.values()]


def _searches(bench: Bench) -> list[partial]:
    if bench.config.search is None:
        return []
    jobs = []
    for scenario in bench.scenarios.values():
        for entry in bench.config.methods:
            Search(bench, entry.name, scenario)
            jobs.append(partial(_search, method=entry.name, scenario=scenario.name))
    return jobs


def _search_of(bench: Bench, job: partial) -> Search:
    return Search(bench, job.keywords["method"], bench.scenarios[job.keywords["scenario"]])


def _warn_of_short_searches(bench: Bench) -> None:
    """Says where trials forget fewer classes than the benchmark, because too few are left."""
    if bench.config.search is None:
        return
    for scenario in bench.scenarios.values():
        wanted = [len(classes) for classes in scenario.requests[: bench.config.search.requests]]
        found = [len(classes) for classes in search_scenario(bench, scenario, bench.config.search).requests]
        if found != wanted:
            message = "Trials of %r forget %s classes, request by request, not %s: no setting may forget them too."
            logger.warning(message, scenario.name, found, wanted)


def yardstick_cells(bench: Bench) -> list[Cell]:
    """Returns the rows of the original model, and of retrained models that are no references."""
    audit = bench.config.audit
    controls = audit.controls if audit and audit.given is None else 0
    return [
        *(Cell(ORIGINAL, scenario, 0) for scenario in bench.scenarios),
        *(Cell(RETRAINED, scenario, seed) for scenario in bench.scenarios for seed in range(controls)),
    ]


def collect(bench: Bench) -> BenchmarkResults:
    """Reads the rows of all runs that are done, and writes the results."""
    worker = Worker(bench)
    rows: list[Row] = []
    attacks: list[Row] = []
    for cell in (*yardstick_cells(bench), *bench.cells()):
        if (finished := worker.finished(cell)) is not None:
            found = worker.found(cell)
            finished = [{**row, RUN: worker.runner.name(cell, found)} for row in finished]
            rows += _named(bench, cell, finished) if bench.config.name_classes else finished
            attacks += worker.runner.attacks(cell, found)
    trials = []
    for job in _searches(bench):
        search = _search_of(bench, job)
        about = {"method": job.keywords["method"], "setting": job.keywords["scenario"], SEARCH: search.name}
        best = search.best()
        trials += [
            {**about, **trial, "options": json.dumps(trial["options"]), CHOSEN: trial == best}
            for trial in search.trials() or []
        ]
    results = BenchmarkResults(rows, trials, attacks)
    results.save(bench.output)
    return results


def _named(bench: Bench, cell: Cell, rows: list[Row]) -> list[Row]:
    """Adds the ids of each request. No run keeps them, so that they leave the results when they are not asked for."""
    if cell.method in (ORIGINAL, RETRAINED):
        return rows
    requests = bench.scenarios[cell.scenario].requests
    return [{**row, "class_ids": json.dumps(requests[row["task"] - 1])} for row in rows]


def _remove_failed(bench: Bench) -> None:
    """Removes the runs and the trials of this benchmark that ended with an error."""
    worker = Worker(bench)
    for cell in (*yardstick_cells(bench), *bench.cells()):
        if any(map(is_error, worker.finished(cell) or [])):
            worker.runner.remove(cell, worker.found(cell))
    for job in _searches(bench):
        _search_of(bench, job).forget_failed()
