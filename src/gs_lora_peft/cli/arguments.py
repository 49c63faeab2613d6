"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..sequence import ForgettingLedger


def _parsed_tasks(text: str) -> int | Sequence[str]:
    return int(text) if text.isascii() and text.isdigit() else [name.strip() for name in text.split(",")]


def _tasks_in_effect(ctx: typer.Context, incomplete: str) -> list[str]:
    """For the completion of a shell: the tasks of the run that was typed before."""
    try:
        names = [entry.name for entry in ForgettingLedger.load(ctx.params["run"]).active_tasks]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Folder of a run, or a repository on the Hub. A folder that exists wins."),
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.")]
Task = Annotated[str, typer.Argument(metavar="TASK", help="The task, as task_002.", autocompletion=_tasks_in_effect)]
Tasks = Annotated[
    Any,  # int | Sequence[str] | None, which typer does not know
    typer.Option(
        metavar="TASKS",
        help="The first so many tasks in effect, or some by name, as task_001,task_003. By default all.",
        parser=_parsed_tasks,
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of the repository; by default main.")
]
Token = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="For the Hub; by default HF_TOKEN or that of 'hf auth login'.")
]
MaxRank = Annotated[
    int | None,
    typer.Option(metavar="RANK", help="Largest rank in a layer; more is recompressed. By default it is exact."),
]
Private = Annotated[bool, typer.Option("--private/--public", help="Visibility of a repository that is made.")]
Dataset = Annotated[str | None, typer.Option(metavar="ID", help="Hub id of the data set, for the card.")]
License = Annotated[str | None, typer.Option(metavar="NAME", help="License of the base model, for the card.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]
