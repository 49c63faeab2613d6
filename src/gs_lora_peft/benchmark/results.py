"""The rows of a benchmark: files for programs, and what is written beside them for people."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..errors import InvalidInputError
from ..io import StrPath, as_path, write_bytes_atomic
from ..reports import Table
from .cells import is_error
from .charts import draw_figures
from .parts import slug
from .tables import attack_table, main_table, search_table, task_table

RESULTS, TRIALS, ATTACKS = "results", "search", "attacks"
# Columns that name the file of a run and of a search, and so everything that they depend on.
RUN, SEARCH = "run", "search"
TABLES_FOLDER, FIGURES_FOLDER = "tables", "figures"

Row = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkResults:
    """Results of a benchmark.

    Args:
        rows (`list[dict]`):
            One for each request of each run: method, setting, seed, `task` (its number), scores, time, stored bytes,
            `trainable` (numbers that train) and `peak_bytes` (memory, of the process on a CPU). The row of the last
            request (`final`) also has the outcome of the run and the figures of the audit.
        trials (`list[dict]`, *optional*):
            One for each trial of the search.
        attacks (`list[dict]`, *optional*):
            One for each judged figure of each audit: method, setting, seed, attack, `attack_setting`, `where`, and the
            figure of the model (`value`), of the original and of the mean of the references, with the `excess`.
    """

    rows: list[Row]
    trials: list[Row] = field(default_factory=list)
    attacks: list[Row] = field(default_factory=list)

    @property
    def settings(self) -> list[str]:
        """Names of the settings, in order."""
        return list(dict.fromkeys(row["setting"] for row in self.rows))

    @property
    def failed(self) -> list[Row]:
        """The last rows of the runs that ended with an error, and the trials of the search that did."""
        return [row for row in self.rows if row["final"] and is_error(row)] + [t for t in self.trials if is_error(t)]

    def final(self, setting: str) -> list[Row]:
        """Returns the rows of the last request of each run in a setting."""
        return [row for row in self.rows if row["setting"] == setting and row["final"]]

    def table(self, setting: str | None = None) -> Table:
        """Returns the table of a setting: a line for each method, its mean ± standard deviation over seeds.

        The recovery gap decides: lines are in its order, those that did not forget in every run come last and are not
        marked as best. The original and one more retrained model are at the top.

        Args:
            setting (`str`, *optional*, defaults to the first one):
                Its name.

        Raises:
            InvalidInputError: If the results lack this setting.
        """
        chosen = self._known(setting)
        return main_table(chosen, self.final(chosen), [row for row in self.rows if row["setting"] == chosen])

    def task_table(self, setting: str | None = None) -> Table:
        """Returns the table of the papers on continual forgetting: H, Acc_r, Acc_f and Acc_o after each request."""
        chosen = self._known(setting)
        return task_table(chosen, [row for row in self.rows if row["setting"] == chosen])

    def attack_table(self, setting: str | None = None) -> Table:
        """Returns what every attack gets back from every method, see [`attack_table`]."""
        chosen = self._known(setting)
        return attack_table(chosen, [row for row in self.attacks if row["setting"] == chosen])

    def search_table(self) -> Table:
        """Returns what the search chose for each method and setting."""
        return search_table(self.trials)

    def save(self, folder: StrPath) -> list[Path]:
        """Writes rows, trials and attacks as JSON lines and parquet, tables (Markdown, LaTeX, CSV) and figures.

        Args:
            folder (`str` or `os.PathLike`):
                The folder, made if it is missing.

        Returns:
            `list[pathlib.Path]`: The files.
        """
        out = as_path(folder, "folder")
        files: dict[Path, bytes] = {}
        for name, rows in ((RESULTS, self.rows), (TRIALS, self.trials), (ATTACKS, self.attacks)):
            if rows:
                lines = [json.dumps(row) + "\n" for row in rows]
                files[out / f"{name}.jsonl"] = "".join(lines).encode()
                files[out / f"{name}.parquet"] = as_parquet(rows)
        for name, table in self._tables().items():
            for suffix, text in (("md", table.to_markdown()), ("tex", table.to_latex()), ("csv", table.to_csv())):
                files[out / TABLES_FOLDER / f"{name}.{suffix}"] = f"{text.rstrip()}\n".encode()
        for name, picture in draw_figures(self.rows).items():
            files[out / FIGURES_FOLDER / name] = picture
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, content)
        return sorted(files)

    @classmethod
    def load(cls, folder: StrPath) -> Self:
        """Reads the results in a folder: JSON lines, or parquet files where there are none.

        Raises:
            InvalidInputError: If it has none.
        """
        read = {}
        for name in (RESULTS, TRIALS, ATTACKS):
            path = as_path(folder, "folder") / f"{name}.jsonl"
            if path.is_file():
                read[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            else:
                read[name] = of_parquet(path.with_suffix(".parquet"))
        if not read[RESULTS]:
            raise InvalidInputError(
                "folder", str(folder), f"a folder with {RESULTS}.jsonl or .parquet", "Run the benchmark first."
            )
        return cls(read[RESULTS], read[TRIALS], read[ATTACKS])

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether a folder has results."""
        return any((folder / f"{RESULTS}.{suffix}").is_file() for suffix in ("jsonl", "parquet"))

    def _tables(self) -> dict[str, Table]:
        found = {slug(name): self.table(name) for name in self.settings}
        continual = [name for name in self.settings if any(row["tasks"] > 1 for row in self.final(name))]
        found |= {slug(name, "tasks"): self.task_table(name) for name in continual}
        audited = dict.fromkeys(row["setting"] for row in self.attacks)
        found |= {slug(name, "attacks"): self.attack_table(name) for name in audited}
        return found | ({"search": self.search_table()} if self.trials else {})

    def _known(self, setting: str | None) -> str:
        if setting is None and self.settings:
            return self.settings[0]
        if setting not in self.settings:
            raise InvalidInputError("setting", setting, f"one of {self.settings}")
        return setting


def as_parquet(rows: Sequence[Row]) -> bytes:
    """Returns rows as a parquet file with the columns of all of them; a column without any value is left out."""
    from pyarrow import Table as ArrowTable, parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    buffer = io.BytesIO()
    table = ArrowTable.from_pydict({name: own for name, own in columns.items() if any(v is not None for v in own)})
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def of_parquet(path: Path) -> list[Row]:
    """Returns the rows of a parquet file; none if there is no file. Absent values are `None`."""
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist() if path.is_file() else []
