"""Tables with renderers for text, terminals, Markdown, LaTeX and CSV, and the names and numbers in them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..io import visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | int | float | None

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # at the start of a row LaTeX would read an option of the row before
    "–": "--",
    "…": r"\dots{}",
    "→": r"$\to$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A table of values. Each renderer formats and escapes them for its own format.

    Args:
        header (`Sequence[str]`):
            One title per column.
        rows (`Sequence[Sequence[Cell]]`):
            One cell per column. A `float` is a rate from 0 to 1 and is shown in percent. `None` is shown as a dash,
            and everything else as it is.
        align (`str`, *optional*, defaults to `""`):
            `l` (left) or `r` (right) for each column, e.g. `"lrr"`. Columns without a letter are aligned left.
        caption (`str`, *optional*, defaults to `""`):
            A line above the table.
        notes (`Sequence[str]`, *optional*, defaults to `()`):
            Lines below the table.
        best (`Collection[tuple[int, int]]`, *optional*, defaults to `()`):
            Row and column of cells that Markdown and LaTeX print bold.
        second (`Collection[tuple[int, int]]`, *optional*, defaults to `()`):
            Row and column of cells that they underline.

    Raises:
        ValueError: If a row has more or fewer cells than the header has titles.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str = ""
    caption: str = ""
    notes: Sequence[str] = ()
    best: Collection[tuple[int, int]] = ()
    second: Collection[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row has {len(row)} cells: {row!r}; expected {len(self.header)}, as the header.")

    def to_text(self) -> str:
        """Renders plain text in aligned columns."""
        from rich.cells import cell_len  # Chinese characters and emoji are two columns wide

        head, *body = ([visible(cell) for cell in row] for row in self._texts())
        widths = [max(map(cell_len, column)) for column in zip(head, *body, strict=True)]
        lines = []
        for row in (head, ["-" * width for width in widths], *body):
            gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            cells = zip(row, gaps, self._alignment(), strict=True)
            lines.append("  ".join(gap + cell if side == "r" else cell + gap for cell, gap, side in cells).rstrip())
        above, notes = ([visible(line) for line in part] for part in (self._above(), self.notes))
        return "\n\n".join("\n".join(part) for part in (above, lines, notes) if part)

    def to_rich(self, *, fold: str | None = None, faint: Collection[int] = ()) -> RichTable:
        """Renders a table of `rich` for a terminal, without caption and notes.

        Args:
            fold (`str`, *optional*):
                Title of the column that is folded if the terminal is too narrow.
            faint (`Collection[int]`, *optional*, defaults to `()`):
                Indices of rows that are shown faintly.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=0)
        head, *body = self._texts()
        for title, side in zip(head, self._alignment(), strict=True):
            table.add_column(
                Text(visible(title)),
                justify="right" if side == "r" else "left",
                no_wrap=title != fold,
                overflow="fold" if title == fold else "ellipsis",
                min_width=10 if title == fold else None,
            )
        for number, row in enumerate(body):
            table.add_row(*(Text(visible(cell)) for cell in row), style="dim" if number in faint else None)
        return table

    def to_markdown(self) -> str:
        """Renders Markdown. Cells are escaped."""
        head, *body = ([escape_markdown(cell) for cell in row] for row in self._texts())
        body = self._marked(body, "**{}**", "<u>{}</u>")
        rule = ["---:" if side == "r" else "---" for side in self._alignment()]
        lines = [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
        above, notes = ([escape_markdown(line) for line in part] for part in (self._above(), self.notes))
        return "\n\n".join([*above, "\n".join(lines), *notes])

    def to_latex(self) -> str:
        """Renders LaTeX with the rules of the package booktabs. Cells are escaped."""
        head, *body = ([escape_latex(cell) for cell in row] for row in self._texts())
        body = self._marked(body, r"\textbf{{{}}}", r"\underline{{{}}}")
        first, *lines = (f"{' & '.join(row)} \\\\" for row in (head, *body))
        tabular = [
            rf"\begin{{tabular}}{{{''.join(self._alignment())}}}",
            *(r"\toprule", first, r"\midrule", *lines, r"\bottomrule"),
            r"\end{tabular}",
        ]
        if not self.caption and not self.notes:
            return "\n".join(tabular)
        caption = [rf"\caption{{{escape_latex(self.caption)}}}"] if self.caption else []
        notes = [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in self.notes]
        return "\n".join([r"\begin{table}", r"\centering", *caption, *tabular, *notes, r"\end{table}"])

    def to_csv(self) -> str:
        """Renders CSV for programs: numbers with all digits, rates from 0 to 1, and empty cells for `None`."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()

    def _texts(self) -> list[list[str]]:
        """Returns the header and all rows as text."""
        return [list(self.header), *([_shown(cell) for cell in row] for row in self.rows)]

    def _marked(self, body: list[list[str]], bold: str, underlined: str) -> list[list[str]]:
        """Puts marks around the escaped cells of `best` and `second`."""
        for mark, places in ((bold, self.best), (underlined, self.second)):
            for row, column in places:
                body[row][column] = mark.format(body[row][column])
        return body

    def _alignment(self) -> str:
        return self.align.ljust(len(self.header), "l")

    def _above(self) -> list[str]:
        return [self.caption] if self.caption else []


def _shown(cell: Cell) -> str:
    return percent(cell) if cell is None or isinstance(cell, float) else str(cell)


def percent(value: float | None) -> str:
    """Formats a rate from 0 to 1 in percent with one decimal; `None` is a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def short_percent(value: float | None) -> str:
    """Formats a rate in percent without a trailing zero: `"70"`, `"12.5"`; `None` is a dash."""
    return percent(value).removesuffix(".0")


def shortened_names(names: Sequence[str], longest: int = 40) -> tuple[str, list[str]]:
    """Splits module paths into their common start and the rest of each.

    Args:
        names (`Sequence[str]`):
            Different dotted paths, e.g. `["vit.layers.0", "vit.layers.1"]`.
        longest (`int`, *optional*, defaults to 40):
            Number of characters. If a rest is longer, the long parts of all rests are shortened in their middle, as
            long as the rests stay different.

    Returns:
        `tuple[str, list[str]]`: The start and the rests, e.g. `("vit.layers", ["0", "1"])`.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    labels = [".".join(p[shared:]) for p in parts]
    for length in range(longest, 2, -1):
        if max(map(len, labels), default=0) <= longest:
            break
        cut = [".".join(_cut(part, length) for part in p[shared:]) for p in parts]
        if len(set(cut)) < len(cut):
            break
        labels = cut
    return ".".join(parts[0][:shared]) if parts else "", labels


def _cut(text: str, length: int) -> str:
    """Shortens text in its middle: `"stage_12"` to a length of 6 is `"sta…12"`."""
    tail = length // 3 or 1
    return text if len(text) <= length else f"{text[: length - 1 - tail]}…{text[-tail:]}"


def escape_markdown(text: object) -> str:
    """Escapes text for Markdown. It stays in its line and table cell, and invisible characters are shown."""
    entities = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], _one_line(text))
    return re.sub(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", entities)


def escape_latex(text: object) -> str:
    """Escapes text for LaTeX. It stays in its line and table cell."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _one_line(text: object) -> str:
    return visible(re.sub(r"\s+", " ", str(text)).strip())
