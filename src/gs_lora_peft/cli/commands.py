"""Commands on finished runs: verify, push, pull, export, merge and revoke."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer

from .terminal import (
    Dataset,
    Json,
    License,
    MaxRank,
    Private,
    Revision,
    Run,
    RunFolder,
    Task,
    Tasks,
    Token,
    print_result,
    working,
)


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

    The exit code is 1 if anything differs from the ledger, else 3 if a request is not forgotten by its scores. It is
    0 if that is not known, and the output says so.
    """
    with working(f"Checking {run}"):
        from ..hub import fetch_repository, folder_or_fetched, verify_repository
        from ..ledger import NOT_FORGOTTEN_STATUS

        folder = folder_or_fetched(
            run, lambda repo_id: fetch_repository(repo_id, revision=revision, token=token), revision
        )
        report = verify_repository(folder, base_model, token=token)
    if report.problems:
        lines = [f"{len(report.problems)} problem(s):", *report.problems]
    else:
        lines = [
            f"{'All is well' if report.forgotten else 'Files and ledger agree'}: {len(report.tasks)} task(s) "
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
    if report.forgotten is None and report.tasks:
        lines.append("It is not known whether every request is forgotten: the ledger holds no score that tells.")
    lines += report.remarks
    print_result(as_json, {"ok": not report.problems, **dataclasses.asdict(report)}, "\n".join(lines))
    if report.problems:
        raise typer.Exit(1)
    if report.forgotten is False:
        raise typer.Exit(NOT_FORGOTTEN_STATUS)


RepoId = Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the Hub, as 'organisation/name'.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Folder to make; a folder that holds files is refused.")]


def push(
    run: RunFolder,
    repo_id: RepoId,
    private: Private = True,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="First line of the commit.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="A branch, made if it does not exist; by default main.")
    ] = None,
    withhold_classes: Annotated[
        bool | None,
        typer.Option(
            "--withhold-classes/--name-classes",
            help="Whether to withhold the names of classes. By default as in the last publication, else not.",
            show_default=False,
        ),
    ] = None,
    max_rank: MaxRank = None,
    dataset: Dataset = None,
    license: License = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Publish a run, or its changes, in one commit, and print the commit's address.

    The repository is private by default. 'gs-lora export --repository' shows what would be published.
    """
    with working(f"Publishing {run} in {repo_id}"):
        from ..hub import push_to_hub

        url = push_to_hub(
            run,
            repo_id,
            private=private,
            commit_message=message,
            revision=revision,
            withhold_classes=withhold_classes,
            max_rank=max_rank,
            dataset=dataset,
            license=license,
            token=token,
        )
    print_result(as_json, {"url": url}, url)


def pull(
    repo_id: RepoId,
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="A new folder, or a folder with another state of the run. By default the last part of REPO_ID.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Download a published run to a folder in which it can be continued, and print the folder.

    ContinualForgetter carries out the next request there, and 'gs-lora push' publishes it.
    """
    with working(f"Fetching {repo_id}"):
        from ..hub import fetch_to_continue
        from ..ledger import ForgettingLedger

        place = fetch_to_continue(repo_id, folder, revision=revision, token=token)
    tasks = [entry.name for entry in ForgettingLedger.load(place).active_tasks]
    print_result(as_json, {"folder": os.fspath(place), "tasks": tasks}, os.fspath(place))


def export(
    run: Run,
    out: Out,
    tasks: Tasks = None,
    max_rank: MaxRank = None,
    repository: Annotated[
        bool, typer.Option("--repository", help="Write everything that 'gs-lora push' would publish of the run.")
    ] = False,
    repo_id: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Name of the repository, for its card (with --repository).")
    ] = None,
    withhold_classes: Annotated[
        bool | None,
        typer.Option(
            "--withhold-classes/--name-classes",
            help="Whether to withhold the names of classes (with --repository). By default as published before.",
            show_default=False,
        ),
    ] = None,
    dataset: Dataset = None,
    license: License = None,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write a run, or some of its tasks, as one plain LoRA adapter, and print its folder.

    Stock PEFT loads it. With --repository the folder also has ledger, card, pictures and the adapters of single tasks.
    """
    of_adapter, of_repository = (tasks, revision, token), (repo_id, withhold_classes, dataset, license)
    if repository and any(value is not None for value in of_adapter):
        raise typer.BadParameter("--repository cannot be combined with --tasks, --revision or --token.")
    if not repository and any(value is not None for value in of_repository):
        raise typer.BadParameter(
            "--repo-id, --withhold-classes, --name-classes, --dataset and --license need --repository."
        )
    with working(f"Exporting {run}"):
        from ..hub import export_forgotten, stage_repository

        if repository:
            report = stage_repository(
                run,
                out,
                repo_id,
                withhold_classes=withhold_classes,
                max_rank=max_rank,
                dataset=dataset,
                license=license,
            ).composite
        else:
            report = export_forgotten(run, out, tasks=tasks, max_rank=max_rank, revision=revision, token=token)
    print_result(as_json, {"folder": out, **(dataclasses.asdict(report) if report else {})}, out)


def merge(
    run: Run,
    out: Out,
    base_model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Folder or Hub id of the base model, which 'gs-lora show' names."),
    ],
    tasks: Tasks = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="New repository, to publish the model as well.")
    ] = None,
    private: Private = True,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write a full model that has forgotten, and print its folder.

    From a base model with an adapter, the adapter can be taken off. From this model, shared alone, it cannot. What
    attacks still get back from it depends on the recipe: 'gs-lora audit' measures it.
    """
    with working(f"Merging {run} into {base_model}"):
        from ..hub import merge_forgotten

        merge_forgotten(
            base_model, run, out, tasks=tasks, revision=revision, token=token, push_to=push_to, private=private
        )
    print_result(as_json, {"folder": out, "repo_id": push_to}, out)


def revoke(
    run: RunFolder,
    task: Task,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Reason, for the ledger.")] = None,
    as_json: Json = False,
) -> None:
    """Revoke a request: its task is no longer loaded, merged or published. Its files stay.

    The effect on the model is not measured, because that needs data. ContinualForgetter.revoke measures it.
    """
    from ..ledger import ForgettingLedger

    ledger = ForgettingLedger.load(run)
    with ledger.changes():
        entry = ledger.revoke(task, reason=reason)
    remain = [entry.name for entry in ledger.active_tasks]
    print_result(
        as_json,
        {"task": entry.name, "revocation": entry.revocation, "measured": False, "tasks": remain},
        f"{entry.name} is revoked; in effect remain: {', '.join(remain) or 'none'}.\nThe effect on the accuracy was "
        "not measured. The next 'gs-lora push' changes the published run.",
    )
