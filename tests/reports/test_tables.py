"""One table in every format: the same values, and nothing in a cell is taken for markup."""

import csv
import io

import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from gs_lora_peft.reports import Table, escape_latex, percent, short_percent

TABLE = Table(
    ["task", "Acc_f", "groups"],
    [["task_001", 0.98125, 8], ["task_002", None, 12]],
    align="lrr",
    caption="Two tasks",
    notes=["A note."],
)
HOSTILE = "a|b & 5 % $x$ #1 {y} \\par ~ ^ _z_\n<b> \x1b[2J"


def printed(table, width=80, **options):
    console = Console(file=io.StringIO(), width=width)
    console.print(table.to_rich(**options))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_text():
    """Caption, aligned columns below a rule, and notes, each after an empty line."""
    assert TABLE.to_text().splitlines() == [
        "Two tasks",
        "",
        "task      Acc_f  groups",
        "--------  -----  ------",
        "task_001   98.1       8",
        "task_002      –      12",
        "",
        "A note.",
    ]


def test_terminal():
    """The same cells; where there is too little room, one column is folded and the others stay whole."""
    assert [line.split() for line in printed(TABLE)[2:]] == [["task_001", "98.1", "8"], ["task_002", "–", "12"]]
    table = Table(["task", "who"], [["task_001", "person " * 9]])
    lines = printed(table, width=30, fold="who", faint=[0])
    assert "task_001" in lines[2]
    assert " ".join(lines[2:]).count("person") == 9


def test_markdown():
    """A renderer reads the same cells and which column is aligned right."""
    assert TABLE.to_markdown().splitlines() == [
        "Two tasks",
        "",
        "| task | Acc_f | groups |",
        "| --- | ---: | ---: |",
        "| task_001 | 98.1 | 8 |",
        "| task_002 | – | 12 |",
        "",
        "A note.",
    ]
    tokens = MarkdownIt("commonmark").enable("table").parse(Table(["x", "y"], [[HOSTILE, "z"]]).to_markdown())
    assert sum(token.type == "td_open" for token in tokens) == 2
    kinds = {child.type for token in tokens for child in token.children or []}
    assert not kinds & {"em_open", "html_inline", "link_open", "code_inline"}


def test_latex():
    """Rules of booktabs; without caption and notes the tabular alone, for a table environment of one's own."""
    assert TABLE.to_latex().splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Two tasks}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"task & Acc\_f & groups \\",
        r"\midrule",
        r"task\_001 & 98.1 & 8 \\",
        r"task\_002 & -- & 12 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize A note.",
        r"\end{table}",
    ]
    assert Table(["x"], [["y"]]).to_latex().startswith(r"\begin{tabular}{l}")
    assert escape_latex(HOSTILE) == (
        r"a\textbar{}b \& 5 \% \$x\$ \#1 \{y\} \textbackslash{}par \textasciitilde{} \textasciicircum{} \_z\_ "
        r"\textless{}b\textgreater{} \textbackslash{}x1b{[}2J"
    )


def test_csv():
    """For programs: values as they are."""
    table = Table(
        ["task", "who", "Acc_f", "groups"], [["task_001", 'a, "b"', 0.98125, 8], ["task_002", "c", None, 12]]
    )
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [
        ["task", "who", "Acc_f", "groups"],
        ["task_001", 'a, "b"', "0.98125", "8"],
        ["task_002", "c", "", "12"],
    ]


@given(st.lists(st.lists(st.text(max_size=8) | st.floats(0, 1) | st.none(), min_size=2, max_size=2), max_size=4))
def test_every_cell_stays_in_its_line(rows):
    """Whatever names hold, a row is one line of visible characters, and columns start below their titles."""
    table = Table(["first column", "second"], rows, align="rr")
    lines = table.to_text().split("\n")
    assert len(lines) == 2 + len(rows)
    assert all(line.isprintable() or "\u200c" in line or "\u200d" in line for line in lines)
    assert len(table.to_markdown().split("\n")) == 2 + len(rows)
    assert len(table.to_latex().split("\n")) == 6 + len(rows)


def test_wide_characters_keep_columns_straight():
    """A Chinese character takes two columns of a terminal."""
    head, _, *rows = Table(["class", "n"], [["茶壶", "1"], ["tench", "2"]]).to_text().splitlines()
    assert [cell_len(row) for row in rows] == [cell_len(head)] * 2


def test_rates():
    """One decimal in tables, none that are needless in sentences, a dash where nothing was measured."""
    assert [percent(value) for value in (0.0, 0.12345, 1.0, None)] == ["0.0", "12.3", "100.0", "–"]
    assert [short_percent(value) for value in (0.0, 0.125, 1.0, None)] == ["0", "12.5", "100", "–"]


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        Table(["a", "b"], [["x", "y"], ["z"]])
