"""Publishing results as a data set on the Hub: rows, tables, figures and a card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import DatasetCardData

from ..errors import InvalidInputError
from ..hub import checked_repo_id, commit_folder, open_repository, writing_api
from ..io import StrPath, write_bytes_atomic
from ..reports import render_dataset_card
from .results import ATTACKS, FIGURES_FOLDER, RESULTS, RUN, SEARCH, TABLES_FOLDER, TRIALS, BenchmarkResults, Row

# Files of an earlier state in these folders are removed.
_FOLDERS = (f"{TABLES_FOLDER}/", f"{FIGURES_FOLDER}/")


def push_results(
    folder: StrPath,
    repo_id: str,
    *,
    private: bool = True,
    token: str | bool | None = None,
    license: str | None = None,
) -> str:
    """Publishes the results in a folder as a data set, in one commit: parquet, JSON lines, tables, figures and a card.

    They hold no class names, and no class ids unless `name_classes` asked for them. Runs, audits and errors stay on
    this machine.

    Args:
        folder (`str` or `os.PathLike`):
            `output` of a benchmark.
        repo_id (`str`):
            `"name"` or `"organisation/name"`; made if it does not exist.
        private (`bool`, *optional*, defaults to `True`):
            Visibility of a new repository. With `True` an existing public one is refused.
        token (`str`, *optional*):
            By default the one of `hf auth login`.
        license (`str`, *optional*):
            License of the results, for the card.

    Returns:
        `str`: Address of the commit.

    Raises:
        InvalidInputError: If the folder has no results, the name is malformed, or the repository is public or holds
            something else.
        HubRefusalError: If the token does not allow it.
        HubUnreachableError: If the Hub is away.
    """
    checked_repo_id(repo_id)
    results = BenchmarkResults.load(folder)
    api = writing_api(token)
    head = open_repository(api, repo_id, private=private, repo_type="dataset")
    if not head.is_new and f"{RESULTS}.parquet" not in head.files:
        fix = "Choose another name, or empty the repository."
        raise InvalidInputError("repo_id", head.repo_id, "a new data set, or one with results of a benchmark", fix)
    with tempfile.TemporaryDirectory() as staged:
        files = stage_results(_published(results), Path(staged), head.repo_id, license)
        names = {file.relative_to(staged).as_posix() for file in files}
        former = [name for name in head.files if name.startswith(_FOLDERS) and name not in names]
        return commit_folder(api, head, staged, f"Benchmark: {len(results.rows)} rows", removed=former)


def _published(results: BenchmarkResults) -> BenchmarkResults:
    """Results without what tells the classes by trying all: a hash of few unknown classes and what everybody knows."""
    if any("class_ids" in row for row in results.rows):
        return results
    rows, trials = ([_without(row) for row in part] for part in (results.rows, results.trials))
    return BenchmarkResults(rows, trials, results.attacks)


def _without(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in (RUN, SEARCH)}


def stage_results(results: BenchmarkResults, folder: Path, repo_id: str, license: str | None = None) -> list[Path]:
    """Writes what [`push_results`] publishes to an empty folder.

    Args:
        results ([`BenchmarkResults`]):
            The results.
        folder (`Path`):
            The folder.
        repo_id (`str`):
            Id of the repository, for the card.
        license (`str`, *optional*):
            As in [`push_results`].
    """
    files = results.save(folder)
    others = {TRIALS: results.trials, ATTACKS: results.attacks}
    names = [RESULTS, *(name for name, rows in others.items() if rows)]
    data = DatasetCardData(
        license=license,
        pretty_name=repo_id.rpartition("/")[2],
        tags=["machine-unlearning", "benchmark", "gs-lora-peft"],
        configs=[
            {"config_name": name, "data_files": f"{name}.parquet", **({"default": True} if name == RESULTS else {})}
            for name in names
        ],
    )
    figures = sorted(file.name for file in files if file.parent.name == FIGURES_FOLDER)
    card = render_dataset_card(
        "benchmark",
        data,
        title=repo_id,
        tables=[results.table(name) for name in results.settings],
        figures=[f"{FIGURES_FOLDER}/{name}" for name in figures],
        rows=len(results.rows),
        trials=len(results.trials),
    )
    write_bytes_atomic(folder / "README.md", str(card).encode())
    return [*files, folder / "README.md"]
