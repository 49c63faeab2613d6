"""The command that attacks a run, to see what can be recovered of what it forgot."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from ..ledger import NOT_FORGOTTEN_STATUS, ForgettingLedger
from .terminal import Json, Revision, Run, Token, print_result, working


@dataclass
class _Options:
    """The options of `load_data` and of other functions that scripts share, under the names they have there."""

    dataset_name: str
    dataset_config_name: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    image_column: str | None = None


# Options of scripts that have another name here.
_NAMES = {"--dataset_name": "--data", "--dataset_config_name": "--data-config"}


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
    quick: Annotated[bool, typer.Option("--quick", help="Give every attack a small budget.")] = False,
    attacks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these attacks, as answer,knn. By default all that fit.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", min=0, help="Seed of all draws.")] = 0,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the report, and of what is finished if the audit is stopped. By default 'audit' in RUN.",
        ),
    ] = None,
    max_gap: Annotated[
        float | None,
        typer.Option(metavar="POINTS", min=0, help="Largest recovery gap; the exit code is 3 if it is exceeded."),
    ] = None,
    label_column: Annotated[str, typer.Option(metavar="NAME", help="Column of labels, or of boxes.")] = "label",
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
    local run. The same command continues a stopped audit. Without --reference the forgotten model is
    compared with random weights, a low bar.
    """
    options = _Options(data, data_config, train_split, test_split, image_column)
    names = None if attacks is None else [name.strip() for name in attacks.split(",")]
    with working(f"Auditing {run}"), _own_names():
        report, folder, is_recorded = _audited(
            run,
            options,
            base_model=base_model,
            references=reference or [],
            output=output,
            revision=revision,
            token=token,
            audit_options={"quick": quick, "attacks": names, "seed": seed, "label_column": label_column},
        )
    from ..audit import format_audit

    note = "" if is_recorded else "\nThe ledger is unchanged: audit the run's own folder to record the verdict."
    text = f"{format_audit(report)}\n\nReport: {os.path.join(folder, 'report.html')}{note}"
    print_result(as_json, {"folder": os.fspath(folder), "recorded": is_recorded, **report.summary()}, text)
    if max_gap is not None and report.gap is not None and report.gap.points > max_gap:
        raise typer.Exit(NOT_FORGOTTEN_STATUS)


def _audited(
    run: str,
    options: _Options,
    *,
    base_model: str | None,
    references: list[str],
    output: str | None,
    revision: str | None,
    token: str | None,
    audit_options: dict[str, Any],
) -> tuple[Any, Path, bool]:
    """Returns the report, its folder, and whether the ledger has it. What can be wrong is checked before training."""
    import torch
    from transformers import AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from ..audit import audit_run, get_attacks, open_run
    from ..data import align_known_labels
    from ..hub import base_source, find_source, load_base_model, resolve_run_folder
    from ..io import as_path
    from .running import load_data

    disable_progress_bar()
    label_column = audit_options["label_column"]
    get_attacks(audit_options["attacks"])
    is_local = os.path.isdir(run)
    ledger = ForgettingLedger.load(resolve_run_folder(run, tasks=0, revision=revision, token=token))
    source = base_model or _recorded_name(ledger)
    sources = [
        find_source(name, "--reference", "the folder of a model", filename="config.json", token=token)
        for name in references
    ]
    dataset: Any = load_data(options)
    model: Any = load_base_model(ledger, source, token=token)
    opened = open_run(model, run, revision=revision, token=token)
    if names := model.config.label2id or model.config.id2label:
        dataset = align_known_labels(dataset, label_column, names)
    try:
        processor = AutoProcessor.from_pretrained(**base_source(ledger, source, token=token))
    except (OSError, ValueError, KeyError, ImportError):  # prepared data need none
        processor = None
    if options.test_split == options.train_split:
        dataset = dataset["train"]  # the audit splits it into halves
    folder = as_path(output, "--output") if output else Path(run if is_local else _last_part(run)) / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    hides = not sys.stderr.isatty()
    models: list[Any] = [
        type(model).from_pretrained(found.place, local_files_only=found.is_away, token=token) for found in sources
    ]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    report = audit_run(
        model.to(device),
        opened.folder,
        dataset,
        reference=[reference.to(device) for reference in models] or None,
        processing_class=processor,
        folder=folder,
        disable_tqdm=hides,
        **audit_options,
    )
    if is_local:
        report.record(run, folder if output else None)
    else:
        report.save(folder)
    return report, folder, is_local


def _recorded_name(ledger: ForgettingLedger) -> str:
    from ..hub import is_on_hub

    name = ledger.base_model.get("name_or_path")
    if not name or not (is_on_hub(ledger.base_model) or os.path.isdir(name)):
        fix = f"The ledger names {name!r}, which is not known to be on the Hub: give its folder."
        raise InvalidInputError("--base-model", None, "folder or Hub id of the base model", fix)
    return str(name)


def _last_part(repo_id: str) -> str:
    return repo_id.rpartition("/")[2]


@contextmanager
def _own_names() -> Iterator[None]:
    """Gives errors the names of options as they are here: functions of scripts write --train_split."""
    try:
        yield
    except InvalidInputError as error:
        error.name, error.expected, error.fix = map(_own_name, (error.name, error.expected, error.fix))
        error.args = InvalidInputError(error.name, error.value, error.expected, error.fix).args
        raise


def _own_name(text: str) -> str:
    return re.sub(r"--[a-z_]+", lambda found: _NAMES.get(found[0], found[0].replace("_", "-")), text)
