"""The work behind `gs-lora forget`: from a command line to a finished run, printed as it goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from ...audit import audit_run, format_audit, retrained_models
from ...ledger import ForgettingLedger, WorseAuditError, exit_status, format_table, parse_requests
from ...runs import ContinualForgetter, are_same_rows
from ..loading import model_class, model_source
from ..show import outcome_of
from ..terminal import UsageError, print_json, print_result, working
from .carrying import carry_out, make_forgetter, own_arguments, published
from .faces import Faces, made_face_model
from .options import Options
from .parser import SettingsParser
from .subjects import Classifier, Detector, Digits


def forget(argv: Sequence[str]) -> int:
    """Does what `gs-lora forget` does, in one process or in each of several.

    Args:
        argv (`Sequence[str]`):
            The options, as in `["--forget", "tench", "--model", "org/vit", "--data", "org/images"]`.

    Returns:
        `int`: The exit code: 0, or 3 if a request is not forgotten.

    Raises:
        UsageError: If the command line is wrong.
        ValueError, OSError: If the model, the data, a request or a setting is refused, or the Hub is away.
    """
    kind, options, source = _chosen(argv)
    requests = parse_requests(options.data.forget or "")
    own_arguments(options, requests, options.args)  # before anything is loaded
    printer = Printer(options.run.json)
    with working():
        subject = _opened(kind, options, source)
        forgetter = forgetter_of(subject)
        subject.before(forgetter, requests)
        carry_out(forgetter, requests, options)
    return finish(subject, forgetter, printer)


class Printer:
    """Prints paragraphs as they come, or at the end one document.

    Args:
        as_json (`bool`):
            Whether to print a document.
    """

    def __init__(self, as_json: bool):
        self.as_json, self.is_main, self.count = as_json, PartialState().is_main_process, 0

    def say(self, text: str) -> None:
        """Prints a paragraph."""
        if self.is_main and not self.as_json:
            print_result(False, {}, f"\n{text}" if self.count else text)
            self.count += 1

    def end(self, document: dict[str, Any]) -> None:
        """Prints the document."""
        if self.is_main and self.as_json:
            print_json(document)


def forgetter_of(subject: Classifier, adapter: dict[str, Any] | None = None) -> ContinualForgetter:
    """Makes the forgetter of a subject, as [`make_forgetter`]."""
    dataset, column, processor = subject.dataset, subject.label_column, subject.processor
    return make_forgetter(subject.options, subject.model, dataset, column, processor, adapter)


def finish(subject: Classifier, forgetter: ContinualForgetter, printer: Printer) -> int:
    """Prints the table of a run and what its kind shows, audits and publishes it if asked; returns the exit code."""
    folder, options = forgetter.folder, subject.options
    printer.say(format_table(forgetter.ledger))
    printer.say(f"Ledger:   {folder / 'forgetting.json'}\nAdapters: {folder / 'tasks'}")
    if printer.is_main:
        with working():
            paragraphs = subject.after(forgetter)
        for paragraph in paragraphs:
            printer.say(paragraph)
    if options.run.audit:
        _audit(subject, forgetter, printer)
    status = 0  # with another status a launcher would stop the main process
    if printer.is_main:
        with working():
            url = published(options.args)
        if url is not None:
            printer.say(f"Hub:      {url}")
        ledger = ForgettingLedger.load(folder)
        printer.end({"folder": os.fspath(folder), "url": url, **outcome_of(ledger)})
        status = exit_status(ledger)
        if status == 0 and not isinstance(subject, Digits):  # their model is in no folder that could be named
            printer.say(_next_steps(os.fspath(folder), options.run.audit))
    return status


def _next_steps(folder: str, audited: bool) -> str:
    """Returns what a run that forgot still lacks; adapters beside their base model erase nothing."""
    audit = f"gs-lora audit {folder} --data DATA measures what attacks get back"
    merge = f"gs-lora merge {folder} OUT --base-model MODEL writes the model to share: an adapter erases nothing"
    return "Next:     " + "\n          ".join([merge] if audited else [audit, merge])


def _audit(subject: Classifier, forgetter: ContinualForgetter, printer: Printer) -> None:
    """Attacks the run beside retrained models or random weights, prints the verdict and records it."""
    options, folder = subject.options, forgetter.folder / "audit"
    count = subject.references if options.run.retrain is None else options.run.retrain
    data = {"processing_class": subject.processor, "label_column": subject.label_column}
    quiet = {"disable_tqdm": bool(options.args.disable_tqdm)}
    with working():
        base, train = subject.base_model().to(options.args.device), subject.dataset["train"]
        references = []
        if count:
            # Trained by all processes together; other seeds than that of the base model.
            plan = {"recipe": subject.recipe, "seed": 1, **data, **quiet}
            references = list(retrained_models(base, train, forgetter.ledger.forgotten_classes, count, **plan))
        if not printer.is_main:
            return
        shown = {"quick": True, "folder": folder, **data, **quiet}
        whole = are_same_rows(train, subject.dataset["test"])  # then it is split into halves
        dataset = train if whole else subject.dataset
        report = audit_run(base, forgetter.folder, dataset, reference=references or None, **shown)
        said = f"Report:   {folder / 'report.html'}"
        try:
            report.record(forgetter.folder)
        except WorseAuditError as error:  # the run is unchanged, and so is what a larger audit found
            said = f"Not recorded: {error}"
    printer.say(f"{format_audit(report)}\n\n{said}")


def _chosen(argv: Sequence[str]) -> tuple[type[Classifier], Options, dict[str, Any]]:
    """Returns the kind of the model, the settings with the defaults of that kind, and where the model is."""
    kind, source = _kind_of(SettingsParser(output_dir="runs").parse_options(argv))
    return kind, SettingsParser(**kind.defaults).parse_options(argv), source


def _kind_of(options: Options) -> tuple[type[Classifier], dict[str, Any]]:
    data, faces = options.data, options.faces
    makes_faces = faces.checkpoint is not None or faces.pretrain
    if data.model_name_or_path is None and data.dataset_name is None and not makes_faces:
        return Digits, {}
    _required(data.forget, "--forget", "the classes to forget, e.g. 'tench,church'")
    _required(data.dataset_name, "--data", "data of all classes, to forget and to keep")
    if data.model_name_or_path is not None:
        source = model_source(data)
        return kind_of_class(model_class(source)), source
    if not makes_faces:
        _required(None, "--model", "the model to change (--checkpoint and --pretrain make a face model)")
    return Faces, {}


def kind_of_class(found: type) -> type[Classifier]:
    """Returns what the command works on, given the class of the model."""
    names = [kind.__name__ for kind in found.__mro__]
    if any(name.endswith("ForObjectDetection") for name in names):
        return Detector
    return Faces if "FaceTransformerForRecognition" in names else Classifier


def _opened(kind: type[Classifier], options: Options, source: dict[str, Any]) -> Classifier:
    if kind is not Faces:
        return kind(options, source)
    return Faces(options, source) if source else Faces(options, *made_face_model(options))


def _required(value: str | None, option: str, what: str) -> str:
    if value is None:
        raise UsageError(f"{option} is missing: name {what}")
    return value
