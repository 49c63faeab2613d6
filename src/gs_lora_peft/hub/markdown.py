"""Markdown in which text from elsewhere stays text: tables, and characters that would mean something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..storage import visible

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(text: object) -> str:
    """Text as it is shown: nothing in it makes markup, leaves its table cell or its line, or is not seen."""
    line = visible(re.sub(r"\s+", " ", str(text)).strip())
    entities = re.sub(r"[&<>]", lambda match: _ENTITIES[match[0]], line)
    return re.sub(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", entities)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every cell must be Markdown already (see [`escape`])."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def task_ranges(names: Sequence[str]) -> str:
    """Names of tasks in rising order, neighbours drawn together: `"task_001 to task_004, task_007"`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _number(name) == _number(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _number(name: str) -> int:
    return int(name.removeprefix("task_"))
