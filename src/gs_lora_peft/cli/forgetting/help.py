"""The help page of a command whose options are dataclasses: panels as those of the other commands.

typer shows and completes the options, and [`SettingsParser`] reads them: the options of transformers take values that
typer has no form for, such as `--use_cpu` beside `--use_cpu true`, and lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..terminal import NAMES
from .options import HelpEntry, help_entries

_HELP = {"--help", "-h"}
_HELP_ALL = {"--help_all", "--help-all"}


class SettingsCommand(TyperCommand):
    """A command that hands its words on as they are, in `ctx.args`."""

    entries: Callable[[], Iterable[HelpEntry]] = staticmethod(help_entries)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and not (_HELP | _HELP_ALL).isdisjoint(args):
            ctx.meta["help_all"] = not _HELP_ALL.isdisjoint(args)
            print(ctx.get_help())
            ctx.exit()
        ctx.args = list(args)
        return ctx.args

    def get_params(self, ctx: Any) -> list[Any]:
        entries = [*self.entries(), *(_of_transformers() if ctx.meta.get("help_all") else ())]
        return [*_as_parameters(entries), *super().get_params(ctx)]


def _as_parameters(entries: Iterable[HelpEntry]) -> list[Any]:
    """Returns options of typer, which makes them from the signature of a function."""

    def nothing(**options: Any) -> None: ...

    parameters = []
    for entry in entries:
        default = None if entry.default is None else str(entry.default)
        option = typer.Option(entry.name, help=entry.text, metavar="…", rich_help_panel=entry.panel)
        kind: Any = Annotated[str | None, option]
        name = entry.name.removeprefix("--").replace("-", "_")
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": []})
    app.command()(nothing)
    return typer.main.get_command(app).params


def _of_transformers() -> Iterable[HelpEntry]:
    """Yields the options of transformers that this package does not list itself."""
    from transformers import TrainingArguments

    known = {entry.name for entry in help_entries()} | NAMES.keys()
    for item in TrainingArguments.__dataclass_fields__.values():
        name = f"--{item.name}"
        if item.init and name not in known:
            text = " ".join(str(item.metadata.get("help", "")).split())
            yield HelpEntry("Of transformers.TrainingArguments", name, item.default or None, text)
