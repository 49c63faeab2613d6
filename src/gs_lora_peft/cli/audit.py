"""The command that attacks a run, to see what can be recovered of what it forgot."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .terminal import NAMES, Json, Revision, Run, Token, own_names, print_result, working

if TYPE_CHECKING:
    from ..ledger import ForgettingLedger


@dataclass(kw_only=True)
class _Options:
    """The options of the command; those of `load_data` under the names that scripts give them."""

    run: str
    dataset_name: str
    dataset_config_name: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None
    box_format: Any
    base_model: str | None
    references: list[str]
    retrain: int
    retrain_epochs: float | None
    output: str | None
    revision: str | None
    token: str | None
    quick: bool
    attacks: list[str] | None
    seed: int
    replace: bool


class BoxFormat(StrEnum):
    """Formats of boxes: left, top, width, height; or left, top, right, bottom."""

    xywh = "xywh"
    xyxy = "xyxy"


def audit(
    run: Run,
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="Labelled data of all classes: a Hub id, or a folder or file of data."),
    ],
    base_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or Hub id of the base model. By default as the ledger names it."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Folder or Hub id of a model trained without the forgotten classes. Repeat it for several.",
        ),
    ] = None,
    retrain: Annotated[
        int, typer.Option(metavar="N", min=0, help="Train so many references from scratch, without the classes.")
    ] = 0,
    retrain_epochs: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="Epochs of each of them; by default 40.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Give every attack a small budget.")] = False,
    attacks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these attacks, as answer,knn. By default all that fit.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", min=0, help="Seed of all draws, and of --retrain.")] = 0,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the report, and of what is finished if the audit is stopped. By default 'audit' in RUN.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Record the verdict also in place of a worse one of a larger audit.")
    ] = False,
    max_gap: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", min=0, help="Largest recovery gap; the exit code is 3 if it is exceeded, or not known."
        ),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of labels; by default 'label', for detectors 'objects'.")
    ] = None,
    box_format: Annotated[BoxFormat, typer.Option(help="Format of a detector's boxes.")] = BoxFormat.xywh,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of images, if it is not called 'image'.")
    ] = None,
    data_config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration of the data set.")] = None,
    train_split: Annotated[str, typer.Option(metavar="SPLIT", help="Split that the attacker has.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Split to judge on; by default test, validation, ...")
    ] = None,
    revision: Revision = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Attack a run: can what it forgot be recovered from its model, beside models that never learned it?

    Prints the worst figure of each attack and a verdict, writes a report, and records the verdict in the ledger of a
    local run. The same command continues a stopped audit. Without --reference and --retrain the forgotten model
    is compared with random weights, a low bar.
    """
    options = _Options(
        run=run,
        dataset_name=data,
        dataset_config_name=data_config,
        train_split=train_split,
        test_split=test_split,
        image_column=image_column,
        label_column=label_column,
        box_format=box_format.value,
        base_model=base_model,
        references=reference or [],
        retrain=retrain,
        retrain_epochs=retrain_epochs,
        output=output,
        revision=revision,
        token=token,
        quick=quick,
        attacks=None if attacks is None else [name.strip() for name in attacks.split(",")],
        seed=seed,
        replace=replace,
    )
    with working(f"Auditing {run}"), own_names(NAMES):
        report, folder, is_recorded = _audited(options)
    from ..audit import format_audit
    from ..ledger import NOT_FORGOTTEN_STATUS

    note = "" if is_recorded else "\nThe ledger is unchanged: audit the run's own folder to record the verdict."
    text = f"{format_audit(report)}\n\nReport: {os.path.join(folder, 'report.html')}{note}"
    print_result(as_json, {"folder": os.fspath(folder), "recorded": is_recorded, **report.summary()}, text)
    if max_gap is not None and not _is_within(report, max_gap):
        raise typer.Exit(NOT_FORGOTTEN_STATUS)


def _is_within(report: Any, points: float) -> bool:
    """Whether the gap is known to be at most so many points; a gap that is not known does not count."""
    return report.gap is not None and report.recovered is not None and report.gap.points <= points


def _audited(options: _Options) -> tuple[Any, Path, bool]:
    """Returns the report, its folder, and whether the ledger has it. What can be wrong is checked before training."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ..audit import audit_run, get_attacks, open_run, retrained_models
    from ..hub import base_source, find_source, load_base_model, resolve_run_folder
    from ..io import as_path
    from ..ledger import ForgettingLedger
    from .loading import load_data, load_processor, with_ids_of

    disable_progress_bar()
    run, token, is_local = options.run, options.token, os.path.isdir(options.run)
    get_attacks(options.attacks)
    ledger = ForgettingLedger.load(resolve_run_folder(run, tasks=0, revision=options.revision, token=token))
    source = options.base_model or recorded_name(ledger)
    found = [
        find_source(name, "--reference", "the folder of a model", filename="config.json", token=token)
        for name in options.references
    ]
    dataset: Any = load_data(options)
    model: Any = load_base_model(ledger, source, token=token)
    opened = open_run(model, run, revision=options.revision, token=token)
    dataset, label_column = with_ids_of(model, dataset, options.label_column, options.box_format)
    if options.test_split == options.train_split:
        # The audit splits a single data set into halves: an attacker who has the samples that are judged would always
        # win.
        dataset = dataset["train"]
    shared = {
        "processing_class": load_processor(base_source(ledger, source, token=token)),
        "label_column": label_column,
        "seed": options.seed,
    }
    shared["disable_tqdm"] = not sys.stderr.isatty()
    folder = (
        as_path(options.output, "--output") if options.output else Path(run if is_local else _last_part(run), "audit")
    )
    folder.mkdir(parents=True, exist_ok=True)
    references: list[Any] = [
        type(model).from_pretrained(at.place, local_files_only=at.is_away, token=token) for at in found
    ]
    if options.retrain:
        # All checks of the data, before hours of training.
        audit_run(model, opened.folder, dataset, attacks=[], reference=references or None, **shared)
        train = dataset["train"] if isinstance(dataset, dict) else dataset
        plan: dict[str, Any] = {"recipe": {} if options.retrain_epochs is None else {"epochs": options.retrain_epochs}}
        plan["cache"] = folder / "retrained"  # a stopped audit goes on with them
        references += retrained_models(model, train, opened.forgotten, options.retrain, **plan, **shared)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    report = audit_run(
        model.to(device),
        opened.folder,
        dataset,
        reference=[reference.to(device) for reference in references] or None,
        attacks=options.attacks,
        quick=options.quick,
        folder=folder,
        **shared,
    )
    if is_local:
        report.record(run, folder if options.output else None, replace=options.replace)
    else:
        report.save(folder)
    return report, folder, is_local


def recorded_name(ledger: ForgettingLedger, option: str = "--base-model") -> str:
    """Returns folder or Hub id of the base model of a run.

    Args:
        ledger ([`ForgettingLedger`]):
            The ledger, which holds only the last part of a path.
        option (`str`, *optional*, defaults to `"--base-model"`):
            The option that names the model otherwise, for the error.

    Raises:
        InvalidInputError: If the ledger does not name one that exists.
    """
    from ..hub import is_on_hub

    name = ledger.base_model.get("name_or_path")
    if not name or not (is_on_hub(ledger.base_model) or os.path.isdir(name)):
        fix = f"The ledger names {name!r}, which is not known to be on the Hub: give its folder."
        raise InvalidInputError(option, None, "folder or Hub id of the base model", fix)
    return str(name)


def _last_part(repo_id: str) -> str:
    return repo_id.rpartition("/")[2]
