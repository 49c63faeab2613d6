"""One run of the table: its training, its scores after every request, and its audit at the end."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..audit import AuditReport
from ..io import write_bytes_atomic, write_json_atomic
from ..ledger import ForgetRequest, all_forgotten, method_folder, task_folder
from ..metrics import measure_of
from ..runs import ContinualForgetter, library_versions
from ..training import NonFiniteLossError
from .parts import ORIGINAL, RETRAINED, slug
from .plan import SCHEMA, Bench, Cell, Scenario
from .trained import keep_trained, read_trained
from .yardsticks import Yardsticks, retrained, scores_at_end

CELLS_FOLDER, RUNS_FOLDER, TRAINED_FOLDER, ERRORS_FOLDER = "cells", "runs", "trained", "errors"
# Outcomes of a run. Any other one is "error: " and the kind of the error.
FORGOTTEN, NOT_FORGOTTEN, DIVERGED, YARDSTICK = "forgotten", "not forgotten", "diverged", "yardstick"

_ROLES = ("retain", "forget", "old", "missing")
_TIMES = "times.json"

Row = dict[str, Any]


class CellRunner:
    """Carries out runs, and keeps what they share.

    Args:
        bench ([`Bench`]):
            The benchmark.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self._yardsticks: dict[str, Yardsticks] = {}

    def yardsticks(self, scenario: Scenario) -> Yardsticks | None:
        """Returns retrained models and attacks for a setting; `None` without an audit."""
        if self.bench.audit_of(scenario.name) is None:
            return None
        if scenario.name not in self._yardsticks:
            self._yardsticks = {scenario.name: Yardsticks(self.bench, scenario)}  # one at a time: they hold models
        return self._yardsticks[scenario.name]

    def finished(self, cell: Cell, found: Mapping[str, Any] | None = None) -> list[Row] | None:
        """Returns the rows of a run that is done; `None` if it is not."""
        return read_rows(self._path(cell, found))

    def name(self, cell: Cell, found: Mapping[str, Any] | None = None) -> str:
        """Returns the name of the file of a run, which stands for everything that the run depends on."""
        return self._path(cell, found).stem

    def remove(self, cell: Cell, found: Mapping[str, Any] | None = None) -> None:
        """Removes the rows of a run, which is then carried out again, or gone on with."""
        self._path(cell, found).unlink()

    def attacks(self, cell: Cell, found: Mapping[str, Any] | None = None) -> list[Row]:
        """Returns the figures of the audit of a run that is done."""
        about = {"method": cell.method, "setting": cell.scenario, "seed": cell.seed}
        kept = json.loads(self._path(cell, found).read_text(encoding="utf-8"))
        return [{**about, **row} for row in kept["attacks"]]

    def carry_out(self, cell: Cell, found: Mapping[str, Any] | None = None) -> list[Row]:
        """Carries out a run, or goes on with it. What fails becomes a row; what fails on the original is raised.

        Args:
            cell ([`Cell`]):
                The run.
            found (`Mapping`, *optional*):
                What a search found: `training` and `hyper_parameters`.
        """
        path = self._path(cell, found)
        if (rows := read_rows(path)) is not None:
            return rows
        scenario, folder = self.bench.scenarios[cell.scenario], self._folder(cell, found)
        facts = self._facts(cell, scenario, found)
        attacks: list[Row] = []
        try:
            if cell.method in (ORIGINAL, RETRAINED):
                rows, model = self._yardstick(cell, scenario)
            else:
                rows, model = self._trained(cell, scenario, found or {}, folder)
            figures, attacks = self._audited(scenario, model)
            rows[-1] |= figures
        except Exception:
            outcome = note_error(self.bench.output, path.stem)
            if cell.method == ORIGINAL:
                raise  # it would fail for every run
            rows = [{"task": len(scenario.requests), "outcome": outcome}]
        rows = [_finite({**facts, **row, "final": row["task"] == len(scenario.requests)}) for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"schema": SCHEMA, "rows": rows, "attacks": attacks, "versions": library_versions()}
        write_json_atomic(path, kept)
        # A run that is tried again goes on behind its last request.
        if not self.bench.config.keep_runs and not is_error(rows[-1]):
            shutil.rmtree(folder, ignore_errors=True)
        return rows

    def _path(self, cell: Cell, found: Mapping[str, Any] | None) -> Path:
        """The file of a run's rows, named by everything that they depend on."""
        digest = self.bench.digest(*self._training(cell, found), self.bench.audit_facts(cell.scenario))
        return self.bench.output / CELLS_FOLDER / f"{slug(cell.method, cell.scenario, cell.seed, digest)}.json"

    def _folder(self, cell: Cell, found: Mapping[str, Any] | None) -> Path:
        """The folder of a run, which another audit goes on with."""
        digest = self.bench.digest(*self._training(cell, found))
        return self.bench.output / RUNS_FOLDER / slug(cell.method, cell.scenario, cell.seed, digest)

    def _training(self, cell: Cell, found: Mapping[str, Any] | None) -> list[Any]:
        """What a run depends on besides its audit."""
        bench, scenario = self.bench, self.bench.scenarios[cell.scenario].facts()
        own = [cell.method] if cell.method in (ORIGINAL, RETRAINED) else bench.entry_facts(bench.entry(cell.method))
        return [cell.method, cell.scenario, own, scenario, cell.seed, found or {}]

    def _facts(self, cell: Cell, scenario: Scenario, found: Mapping[str, Any] | None) -> Row:
        bench = self.bench
        facts: Row = {
            "method": cell.method,
            "setting": cell.scenario,
            "seed": cell.seed,
            "tasks": len(scenario.requests),
            "shots": scenario.setting.shots,
            "replay_ratio": scenario.setting.replay_ratio,
            "train_fraction": scenario.setting.train_fraction,
            "missing_classes": len(scenario.missing),
            "device": bench.model.device.type,
        }
        if cell.method not in (ORIGINAL, RETRAINED):
            entry = bench.entry(cell.method)
            own = bench.entry_facts(entry)
            own["training"] = bench.config.training_of(entry, (found or {}).get("training"))
            own["method"] = entry.make(**(found or {}).get("hyper_parameters", {})).settings()
            facts["options"] = json.dumps(own, sort_keys=True, default=str)
        return facts

    def _trained(
        self, cell: Cell, scenario: Scenario, found: Mapping[str, Any], folder: Path
    ) -> tuple[list[Row], Any]:
        """Carries out a run, or reads what one has left that had another audit."""
        place = self.bench.output / TRAINED_FOLDER / folder.name
        if (kept := read_trained(place, self.bench.fresh_model())) is not None:
            return kept
        rows, model = self._run(cell, scenario, found, folder)
        if not self.bench.config.keep_runs:
            keep_trained(place, self.bench.model, model, [_finite(row) for row in rows])
        return rows, model

    def _run(self, cell: Cell, scenario: Scenario, found: Mapping[str, Any], folder: Path) -> tuple[list[Row], Any]:
        forgetter = make_forgetter(self.bench, cell.method, scenario, cell.seed, found, folder)
        rows = carry_out_requests(forgetter, scenario.requests, folder / _TIMES)
        for row, classes in zip(rows, scenario.requests, strict=True):
            row["classes"] = len(classes)
        rows[-1]["outcome"] = _OUTCOMES[all_forgotten(forgetter.ledger.tasks)]
        return rows, forgetter.model

    def _yardstick(self, cell: Cell, scenario: Scenario) -> tuple[list[Row], Any]:
        bench = self.bench
        model = bench.model if cell.method == ORIGINAL else retrained(bench, scenario, self._control(cell))
        of_base = scores_at_end(bench, scenario, bench.model, None)
        before = of_base[measure_of(of_base).key("forget")]
        scores = scores_at_end(bench, scenario, model, before)
        row = {"task": len(scenario.requests), "classes": len(scenario.requests[-1]), "outcome": YARDSTICK}
        return [{**row, **scores_of(scores)}], model

    def _control(self, cell: Cell) -> int:
        assert self.bench.config.audit is not None
        return self.bench.config.audit.references + cell.seed

    def _audited(self, scenario: Scenario, model: Any) -> tuple[Row, list[Row]]:
        yardsticks = self.yardsticks(scenario)
        if yardsticks is None:
            return {}, []
        start = time.perf_counter()
        figures, report = yardsticks.audit(model)
        return {**figures, "audit_seconds": round(time.perf_counter() - start, 2)}, attack_rows(report)


_OUTCOMES = {True: FORGOTTEN, False: NOT_FORGOTTEN, None: "not known"}


def attack_rows(report: AuditReport) -> list[Row]:
    """Returns a row for each judged figure of an audit: attack, setting, place, and the figure of each model."""
    return [
        {
            "attack": found.attack.title,
            "attack_setting": found.setting,
            "where": found.where,
            "original": found.original.value,
            "reference": found.reference,
            "value": found.forgotten.value,
            "excess": found.excess,
        }
        for found in report.comparisons()
        if found.attack.judged != "shown"
    ]


def make_forgetter(
    bench: Bench, name: str, scenario: Scenario, seed: int, found: Mapping[str, Any], folder: Path, **data: Any
) -> ContinualForgetter:
    """Makes the forgetter of a run, which goes on in a folder that has one.

    Args:
        bench ([`Bench`]):
            The benchmark.
        name (`str`):
            Name of the method.
        scenario ([`Scenario`]):
            The setting.
        seed (`int`):
            The seed.
        found (`Mapping`):
            What a search found.
        folder (`Path`):
            Folder of the run.
        data (*optional*):
            `dataset`: other data than that of the benchmark.
    """
    entry = bench.entry(name)
    args = bench.config.arguments(entry, folder, seed, found.get("training"))
    method = entry.make(**found.get("hyper_parameters", {}))
    return ContinualForgetter(
        bench.fresh_model(),
        bench.data_of(scenario, seed, data.get("dataset")),
        folder,
        config=None if method.trains == "weights" else entry.adapter_config(args),
        args=args,
        method=method,
        shots=scenario.setting.shots,
        replay_ratio=scenario.setting.replay_ratio,
        missing_classes=scenario.missing,
        **bench.loading,
    )


def carry_out_requests(forgetter: ContinualForgetter, requests: Sequence[Sequence[int]], times: Path) -> list[Row]:
    """Carries out requests one after another, except those that the ledger has; returns a row for each.

    Args:
        forgetter ([`ContinualForgetter`]):
            The forgetter.
        requests (`Sequence[Sequence[int]]`):
            Classes of each request.
        times (`Path`):
            File of the seconds of each request, for a run that goes on.
    """
    spent = json.loads(times.read_text(encoding="utf-8")) if times.is_file() else {}
    asked = [ForgetRequest(list(classes)) for classes in requests]
    rows = []
    for number in range(1, len(asked) + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        entry = forgetter.run(asked[:number])[-1]
        if entry.name not in spent:
            spent[entry.name] = [time.perf_counter() - start, time.process_time() - start_cpu]
            write_json_atomic(times, spent)
        stored = [place(forgetter.folder, entry.name) for place in (task_folder, method_folder)]
        row = {"task": number, "outcome": _OUTCOMES[entry.forgotten], "steps": entry.sizes["steps"]}
        row |= {"seconds": spent[entry.name][0], "cpu_seconds": spent[entry.name][1]}
        files = [file for folder in stored for file in folder.rglob("*") if file.is_file()]
        row["stored_bytes"] = sum(file.stat().st_size for file in files)
        row |= {name: (entry.cost or {}).get(name) for name in ("trainable", "peak_bytes")}
        rows.append(row | scores_of(entry.scores["after"]))
    return rows


def note_error(output: Path, name: str) -> str:
    """Writes what failed, and returns its outcome. To be called where the error is handled.

    The text of an error can name classes, so its owner alone reads it on this machine.
    """
    folder = output / ERRORS_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # made before, or by another umask
    note = folder / f"{name}.txt"
    note.unlink(missing_ok=True)
    write_bytes_atomic(note, traceback.format_exc().encode(errors="backslashreplace"), private=True)
    error = sys.exception()
    return DIVERGED if isinstance(error, NonFiniteLossError) else f"error: {type(error).__name__}"


def is_error(row: Row) -> bool:
    """Whether a run, or a trial of the search, ended with an error."""
    return str(row.get("outcome")).startswith("error")


def scores_of(scores: Mapping[str, Any]) -> Row:
    """Returns scores by role, drop and H."""
    key = measure_of(scores).key
    return {name: scores.get(name) for name in (*map(key, _ROLES), "drop", "h_mean")}


def _finite(row: Row) -> Row:
    """JSON has no NaN."""
    return {n: None if isinstance(value, float) and not math.isfinite(value) else value for n, value in row.items()}


def read_rows(path: Path) -> list[Row] | None:
    """Returns the rows of a finished run; `None` if there are none."""
    if not path.is_file():
        return None
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows
