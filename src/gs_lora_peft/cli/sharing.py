"""Commands that exchange whole runs with the Hub."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..sequence import ForgettingLedger
from .arguments import Dataset, Json, License, MaxRank, Private, Revision, RunFolder, Token
from .output import print_result, working

RepoId = Annotated[str, typer.Argument(metavar="REPO_ID", help="Repository on the Hub, as 'organisation/name'.")]


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
            help="Whether no file names a class. By default as it was published before, else classes are named.",
            show_default=False,
        ),
    ] = None,
    max_rank: MaxRank = None,
    dataset: Dataset = None,
    license: License = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Publish a run in one commit, or what is new in it, and print the commit's address.

    The repository is private unless asked otherwise. 'gs-lora export --repository' shows what would be published.
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
            help="A new folder, or one with another state of the run. By default the last part of REPO_ID.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Fetch a published run into a folder in which one can go on with it, and print the folder.

    ContinualForgetter carries out the next request there, and 'gs-lora push' publishes it.
    """
    with working(f"Fetching {repo_id}"):
        from ..sequence.remote import fetch_to_continue

        place = fetch_to_continue(repo_id, folder, revision=revision, token=token)
    tasks = [entry.name for entry in ForgettingLedger.load(place).active_tasks]
    print_result(as_json, {"folder": os.fspath(place), "tasks": tasks}, os.fspath(place))
