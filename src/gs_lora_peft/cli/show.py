"""The command that shows a run: a page for the terminal, or a document for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from .terminal import Json, Revision, Run, Token, print_json, printable

if TYPE_CHECKING:
    from ..ledger import ForgettingLedger

# Colours of verdicts; the words stand beside them.
_STYLES: dict[bool | None, str] = {True: "bold green", False: "bold red", None: "bold yellow"}


def show(run: Run, revision: Revision = None, token: Token = None, as_json: Json = False) -> None:
    """Show what a run has forgotten: base model, tasks, scores, and the verdicts of the scores and of an audit.

    The exit code is 3 if the classes of a request are not forgotten, or are recognised again.
    """
    from ..hub import resolve_run_folder
    from ..ledger import ForgettingLedger, exit_status

    ledger = ForgettingLedger.load(resolve_run_folder(run, tasks=0, revision=revision, token=token))
    if as_json:
        print_json({"folder": str(ledger.folder), **outcome_of(ledger), "ledger": ledger.to_dict()})
    else:
        print_page(ledger, run)
    if status := exit_status(ledger):
        raise typer.Exit(status)


def outcome_of(ledger: ForgettingLedger) -> dict[str, Any]:
    """Returns for JSON whether all is forgotten, the state of each task in effect, and remarks in words.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
    """
    from ..ledger import all_forgotten, audit_lines, doubts, not_forgotten, task_states

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
            for state in task_states(ledger.tasks)
        },
        "remarks": [*not_forgotten(ledger), *doubts(ledger)],
        "audit": audit_lines(ledger.audit, ledger.tasks),
    }


def print_page(ledger: ForgettingLedger, title: str) -> None:
    """Prints the page of a run: what it is, its tasks, and the verdicts. It fits 80 columns.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        title (`str`):
            Folder or repository, as the user named it.
    """
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from ..ledger import narrow_table

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _about(ledger):
        facts.add_row(Text(name, style="dim"), Text(printable(value), overflow="fold"))
    console.print(Panel(facts, title=Text(printable(title)), title_align="left", box=ROUNDED))
    if ledger.tasks:
        table = narrow_table(ledger)
        revoked = [number for number, entry in enumerate(ledger.tasks) if entry.status == "revoked"]
        console.print(table.to_rich(fold="to forget", faint=revoked))
        for note in table.notes:
            console.print(Text(printable(note)), style="dim")
        verdicts = Table.grid(padding=(0, 2))
        for head, good, sentence in _verdicts(ledger):
            verdicts.add_row(Text(head, style=_STYLES[good]), Text(printable(sentence)))
        console.print(Panel(verdicts, title="Verdict", title_align="left", box=ROUNDED))


def _about(ledger: ForgettingLedger) -> Iterator[tuple[str, str]]:
    base = ledger.base_model
    name, model_class = (base.get(key) or "unknown" for key in ("name_or_path", "model_class"))
    revision = f" at {base['revision'][:12]}" if base.get("revision") else ""
    count = f", {base['num_labels']} labels" if base.get("num_labels") is not None else ""
    yield "Base model", f"{name}{revision}"
    yield "Class", f"{model_class}{count}"
    yield "Weights", f"{base['fingerprint'][:19]}..."
    yield "Tasks", f"{len(ledger.tasks)}, of which {len(ledger.active_tasks)} in effect"
    for entry in ledger.tasks:
        if entry.revocation is not None:
            reason = f": {entry.revocation['reason']}" if entry.revocation.get("reason") else ""
            yield "Revoked", f"{entry.name} on {str(entry.revocation.get('revoked_at'))[:10]}{reason}"


def _verdicts(ledger: ForgettingLedger) -> Iterator[tuple[str, bool | None, str]]:
    """Yields what the scores say, what makes one doubt it, and what an audit says: a head, is it good, a sentence."""
    from ..ledger import all_forgotten, audit_lines, doubts, not_forgotten, outdated_audit

    forgotten, count = all_forgotten(ledger.tasks), len(ledger.active_tasks)
    if forgotten:
        yield "Scores", True, f"{'The request' if count == 1 else f'All {count} requests'} in effect: forgotten."
    elif forgotten is None:
        yield "Scores", None, "Not known for every request." if count else "No request is in effect."
    yield from (("Scores", False, sentence) for sentence in not_forgotten(ledger))
    yield from (("Doubt", None, sentence) for sentence in doubts(ledger))
    audit = ledger.audit
    if audit is None:
        yield "Audit", None, "None: what attacks get back was not measured ('gs-lora audit')."
        return
    is_current = outdated_audit(audit, ledger.tasks) is None
    is_gone = None if audit["recovered"] is None or not is_current else not audit["recovered"]
    yield "Audit", is_gone, " ".join(audit_lines(audit, ledger.tasks))
    attacks, models = (f"{n} {what}{'s' * (n != 1)}" for n, what in _counts(audit))
    budget = " with small budgets" if audit["quick"] else ""
    yield "", None, f"{attacks}{budget}, beside {models}, after {audit['tasks'][-1]}."


def _counts(audit: Mapping[str, Any]) -> tuple[tuple[int, str], ...]:
    kind = "retrained model" if audit["reference"] == "retrained" else "model of random weights"
    return (len(audit["attacks"]), "attack"), (audit["references"], kind)
