"""The commands that change nothing: show and verify."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..ledger import (
    NOT_FORGOTTEN_STATUS,
    ForgettingLedger,
    all_forgotten,
    doubts,
    exit_status,
    narrow_table,
    not_forgotten,
    task_states,
)
from .terminal import Json, Revision, Run, Token, print_json, print_result, printable, working


def show(run: Run, revision: Revision = None, token: Token = None, as_json: Json = False) -> None:
    """Show what a run has forgotten: its ledger as a table.

    The exit code is 3 if the classes of a request are not forgotten, or are recognised again.
    """
    from ..hub import resolve_run_folder

    ledger = ForgettingLedger.load(resolve_run_folder(run, tasks=0, revision=revision, token=token))
    if as_json:
        print_json({"folder": str(ledger.folder), **_outcome(ledger), "ledger": ledger.to_dict()})
    else:
        _print_ledger(ledger)
    if status := exit_status(ledger):
        raise typer.Exit(status)


def verify(
    run: Run,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or Hub id of the base model, to check its weights too."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Check a run: its ledger, the hashes of its files, the adapter of all tasks together, and the base model.

    The exit code is 1 if anything differs from the ledger, else 3 if a request is not forgotten by its scores.
    """
    with working(f"Checking {run}"):
        from ..hub import fetch_repository, folder_or_fetched, verify_repository

        folder = folder_or_fetched(
            run, lambda repo_id: fetch_repository(repo_id, revision=revision, token=token), revision
        )
        report = verify_repository(folder, base_model, token=token)
    if report.problems:
        lines = [f"{len(report.problems)} problem(s):", *report.problems]
    else:
        lines = [
            f"{'Files and ledger agree' if report.forgotten is False else 'All is well'}: {len(report.tasks)} task(s) "
            f"in effect, {len(report.files)} file(s) with the right hashes."
        ]
    if report.root_checked:
        lossy = f", recompressed in {len(report.recompressed)} layer(s)" if report.recompressed else ""
        lines.append(
            "The adapter in the root was compared with the sum of the tasks: relative error "
            f"{report.relative_error:.1e}{lossy}."
        )
    lines.append(
        "The base model was compared with the ledger's fingerprint."
        if report.base_checked
        else "No base model was compared (--base-model)."
    )
    lines += report.remarks
    print_result(as_json, {"ok": not report.problems, **dataclasses.asdict(report)}, "\n".join(lines))
    if report.problems:
        raise typer.Exit(1)
    if report.forgotten is False:
        raise typer.Exit(NOT_FORGOTTEN_STATUS)


def _print_ledger(ledger: ForgettingLedger) -> None:
    """Prints the base model, a row for each task, and sentences on tasks that are not forgotten, in 80 columns."""
    console = Console(highlight=False)
    for line in _about(ledger):
        console.print(Text(printable(line)), soft_wrap=True)
    if ledger.tasks:
        table = narrow_table(ledger)
        revoked = [number for number, entry in enumerate(ledger.tasks) if entry.status == "revoked"]
        console.print(table.to_rich(fold="to forget", faint=revoked))
        for note in table.notes:
            console.print(Text(printable(note)), style="dim")
    for line in (*not_forgotten(ledger), *doubts(ledger)):
        console.print(Text(printable(line)))


def _about(ledger: ForgettingLedger) -> list[str]:
    base, active = ledger.base_model, len(ledger.active_tasks)
    name, model_class = (base.get(key) or "unknown" for key in ("name_or_path", "model_class"))
    revision = f" at {base['revision'][:12]}" if base.get("revision") else ""
    count = f", {base['num_labels']} labels" if base.get("num_labels") is not None else ""
    lines = [
        f"Base model: {name}{revision}",
        f"Class:      {model_class}{count}",
        f"Weights:    {base['fingerprint'][:19]}...",
        f"Tasks:      {len(ledger.tasks)}, of which {active} in effect",
    ]
    for entry in ledger.tasks:
        if entry.revocation is not None:
            reason = f": {entry.revocation['reason']}" if entry.revocation.get("reason") else ""
            lines.append(f"{entry.name} was revoked on {str(entry.revocation.get('revoked_at'))[:10]}{reason}")
    return lines


def _outcome(ledger: ForgettingLedger) -> dict[str, Any]:
    """Returns for JSON whether all is forgotten, the state of each task in effect, and remarks in words."""
    states = task_states(ledger.tasks)
    return {
        "forgotten": all_forgotten(ledger.tasks),
        "tasks": {
            state.entry.name: {
                "forgotten": state.forgotten,
                "came_back": state.came_back,
                "score": state.score,
                "target": state.entry.target,
                "measured_after": state.measured_after,
            }
            for state in states
        },
        "remarks": [*not_forgotten(ledger), *doubts(ledger)],
    }
