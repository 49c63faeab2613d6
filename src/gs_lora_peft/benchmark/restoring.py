"""Going on from results alone: what a folder of results holds becomes finished runs and searches again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..io import write_json_atomic
from .cells import CELLS_FOLDER
from .plan import SCHEMA
from .results import RUN, SEARCH, BenchmarkResults
from .search import CHOSEN, SEARCH_FOLDER

Row = dict[str, Any]

_OF_TRIAL = ("method", "setting", SEARCH, CHOSEN)
_OF_ATTACK = ("method", "setting", "seed")


def restore_finished(folder: Path) -> None:
    """Writes the files of runs and searches that results name and the folder lacks.

    Their names say what they depend on, so that those of another benchmark, model or version have no effect.

    Args:
        folder (`Path`):
            The output of a benchmark, which may have `results.jsonl` or `results.parquet` and nothing else.
    """
    if not BenchmarkResults.are_in(folder):
        return
    results = BenchmarkResults.load(folder)
    runs: dict[str, list[Row]] = {}
    for row in results.rows:
        runs.setdefault(row.get(RUN) or "", []).append(_without(row, (RUN, "class_ids")))
    attacks: dict[tuple[Any, ...], list[Row]] = {}
    for row in results.attacks:
        attacks.setdefault(_place(row), []).append(_without(row, _OF_ATTACK))
    for name, rows in runs.items():
        _restore(folder / CELLS_FOLDER, name, {"rows": rows, "attacks": attacks.get(_place(rows[0]), [])})
    searches: dict[str, dict[int, Row]] = {}
    for trial in results.trials:
        own = {**_without(trial, _OF_TRIAL), "options": json.loads(trial["options"])}
        searches.setdefault(trial.get(SEARCH) or "", {})[trial["trial"]] = own  # settings may share a search
    for name, trials in searches.items():
        _restore(folder / SEARCH_FOLDER, name, {"finished": True, "trials": [trials[n] for n in sorted(trials)]})


def _restore(folder: Path, name: str, content: dict[str, Any]) -> None:
    path = folder / f"{name}.json"
    if name and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {"schema": SCHEMA, **content})


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _OF_ATTACK)


def _without(row: Row, names: tuple[str, ...]) -> Row:
    return {name: value for name, value in row.items() if name not in names}
