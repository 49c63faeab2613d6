"""Checks of arguments, data and requests, before any training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from ..compat import unwrapped
from ..data import (
    ALIGN,
    EVALUATION_SPLITS,
    ForgettingSplit,
    check_dataset,
    check_names,
    evaluation_split,
    is_object_column,
    is_placeholder,
    names_of_model,
    read_classes,
    resolve_classes,
)
from ..errors import InvalidInputError, PrivateInputError, located
from ..hub import check_bare
from ..io import StrPath, as_path
from ..ledger import (
    AlreadyForgottenError,
    ForgetRequest,
    ForgettingLedger,
    RequestOrderError,
    TaskEntry,
    WithheldClassesError,
    task_states,
)
from ..objectives import check_class_head, head_size

logger = logging.getLogger(__name__)


def train_and_test(
    dataset: Dataset | dict[str, Dataset], eval_dataset: Dataset | None
) -> tuple[Dataset, Dataset, str]:
    """Chooses the training data and the evaluation data.

    If they are the same, the main process logs a warning.

    Args:
        dataset (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            One data set, or a dict of splits.
        eval_dataset (`datasets.Dataset`, *optional*):
            Evaluation data, used instead of a split.

    Returns:
        `tuple[Dataset, Dataset, str]`: Training data, evaluation data, and the name of the latter.

    Raises:
        ValueError: If the split `train` is missing, or a part is not a `datasets.Dataset`.
    """
    if not isinstance(dataset, dict):
        train, splits = dataset, {}
    elif "train" in dataset:
        train, splits = dataset["train"], dict(dataset)
    else:
        raise InvalidInputError("dataset", list(dataset), "a split 'train'", "Rename one, or give a Dataset.")
    name = evaluation_split(splits)
    if eval_dataset is not None:
        test, title = eval_dataset, "eval_dataset"
    elif name is not None:
        test, title = splits[name], name.lower()
    else:
        test, title = train, "train"
    for title_of, part in (("training", train), ("evaluation", test)):
        try:
            check_dataset(part)
        except ValueError as error:
            raise located(error, f"{title_of} data") from None
    # The same rows under another name are training data, too.
    if are_same_rows(train, test):
        title = "train"
        if PartialState().is_main_process:
            logger.warning(
                "Scores will be measured on the training data, so they say nothing about samples not seen in "
                "training. Give `eval_dataset`, or a DatasetDict with one of the splits %s.",
                ", ".join(EVALUATION_SPLITS),
            )
    return train, test, title


def are_same_rows(first: Dataset, second: Dataset) -> bool:
    """Whether two data sets are known to hold the same rows. Equal fingerprints prove it; others prove nothing."""
    return first is second or first._fingerprint == second._fingerprint


def checked_label_names(train: Dataset, test: Dataset, label_column: str, model: PreTrainedModel) -> list[str] | None:
    """Checks the labels of the data sets against the model; returns the names of the classes.

    Args:
        train (`datasets.Dataset`):
            Training data.
        test (`datasets.Dataset`):
            Evaluation data.
        label_column (`str`):
            Column of the labels, or of annotated boxes.
        model (`transformers.PreTrainedModel`):
            The model with its head and, in its configuration, names of classes.

    Returns:
        `list[str]` or `None`: Names in the order of the ids; `None` if the labels are ids without names.

    Raises:
        ValueError: If the column is missing, labels are outside the head, or data sets and model number the classes
            differently.
    """
    count = head_size(model)
    all_names = []
    for title, dataset in (("training", train), ("evaluation", test)):
        try:
            labels, names = read_classes(dataset, label_column)
        except ValueError as error:
            raise located(error, f"{title} data") from None
        if not len(labels):
            missing = "no row has an object" if len(dataset) else "there are no rows"
            fix = f"Here {missing}: give a split with some."
            raise InvalidInputError(f"{title} data", dataset, "labelled samples", fix)
        fix = ALIGN
        if is_object_column(dataset, label_column):
            fix = f"`gs_lora_peft.data.prepare_boxes(dataset, {label_column!r}, label2id=model.config.label2id)`"
        if count is not None and (labels.max() >= count or (names is not None and len(names) != count)):
            classes = f"{len(names)} classes" if names is not None else f"labels up to {labels.max()}"
            expected = f"the {count} classes of the model's head"
            fix = f"Use the model that was trained on these labels, or number them as the model does, with {fix}."
            raise InvalidInputError(f"{title} data: {label_column}", classes, expected, fix)
        check_names(names, model, f"{title} data: {label_column!r}", fix)
        all_names.append(names)
    of_train, of_test = all_names
    if of_train is not None and of_test is not None and of_train != of_test:
        fix = "The same id would mean another class: cast both to the same ClassLabel."
        raise PrivateInputError(f"evaluation data: {label_column}", of_test, "the names of the training data", fix)
    return of_train or of_test


def names_of_head(model: PreTrainedModel) -> list[str] | None:
    """Returns the names of a model's classes, in the order of their ids; `None` unless it names every one.

    Labels without names are ids of the model, so its names apply to them.
    """
    names, count = names_of_model(model), head_size(model)
    if not names or sorted(names) != list(range(count or len(names))):
        return None
    ordered = [names[class_id] for class_id in range(len(names))]
    return None if any(is_placeholder(name) for name in ordered) else ordered


def checked_folder(folder: StrPath) -> Path:
    """Returns the path of a run folder, after checking that it is not a file."""
    path = as_path(folder, "folder")
    if path.exists() and not path.is_dir():
        raise InvalidInputError("folder", str(path), "a folder; it is a file", "Choose another path.")
    return path


def prepared_base_model(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a base model, without `torch.compile`, after checking that it can be trained on requests.

    Raises:
        ValueError: If the model has adapters, is quantised (unless by torchao in 8 bits) or has no class head.
    """
    model = unwrapped(model)
    check_bare(model, exact=False)
    check_class_head(model, "base_model")
    return model


def resolve_request(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    """Returns the ids of the classes of a request, after checking that none is forgotten already.

    Args:
        request ([`ForgetRequest`]):
            The request.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.

    Raises:
        UnknownClassError: If a class does not exist.
        AlreadyForgottenError: If a class was forgotten by a task in effect.
        WithheldClassesError: If the ledger withholds the forgotten classes.
    """
    classes = _ids(request, ledger, names)
    for class_id in classes:
        if earlier := ledger.task_of_class(class_id):
            message = _already_forgotten_message(class_id, earlier, ledger)
            raise AlreadyForgottenError(message, classes=[class_id], task=earlier.name)
    return classes


def check_missing(classes: Sequence[str | int], ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    """Checks that missing classes exist and are not forgotten; returns their ids.

    Args:
        classes (`Sequence[str | int]`):
            Classes to keep whose training data must not be used, by name or id.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.

    Raises:
        UnknownClassError: If a class does not exist.
        ValueError: If a class is given twice, or was forgotten by a task in effect.
    """
    if isinstance(classes, Sequence) and not classes:
        return []
    count = ledger.base_model.get("num_labels")
    ids = resolve_classes(classes, names=names, num_classes=count, name="missing_classes")
    if gone := [class_id for class_id in ids if ledger.task_of_class(class_id)]:
        fix = f"Leave out the ids {gone}, which earlier tasks forgot."
        raise PrivateInputError("missing_classes", list(classes), "classes that are kept", fix)
    return ids


def find_done(
    requests: Sequence[ForgetRequest],
    ledger: ForgettingLedger,
    names: Sequence[str] | None,
    split: Callable[[Sequence[int], Sequence[int]], ForgettingSplit],
) -> tuple[list[TaskEntry | None], list[int], list[int]]:
    """Splits a sequence of requests into completed and remaining ones, and checks the remaining ones.

    Args:
        requests (`Sequence[ForgetRequest]`):
            The requests.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.
        split (`Callable`):
            As in [`check_requests`].

    Returns:
        `tuple[list, list, list]`: The result of [`match_requests`]; the positions of the remaining requests in the
        order of training, those of revoked tasks last; and the ids of all classes that are forgotten at the end.

    Raises:
        LedgerError: As in [`match_requests`] and [`check_requests`].
        UnknownClassError: If a class does not exist.
        ValueError: As in [`match_requests`] and [`check_requests`].
    """
    found = match_requests(requests, ledger, names)
    revoked = _revoked(ledger)
    rest = [index for index, entry in enumerate(found) if entry is None]
    rest.sort(key=lambda index: frozenset(_ids(requests[index], ledger, names)) in revoked)
    return found, rest, check_requests([requests[index] for index in rest], ledger, names, split)


def match_requests(
    requests: Sequence[ForgetRequest], ledger: ForgettingLedger, names: Sequence[str] | None
) -> list[TaskEntry | None]:
    """Finds the task in effect of each request.

    Tasks must be in the order of the requests. Requests whose task was revoked are an exception: they are carried out
    again after all others, so their tasks may come later.

    Args:
        requests (`Sequence[ForgetRequest]`):
            The requests.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.

    Returns:
        `list[TaskEntry | None]`: One entry per request; `None` if no task in effect carries it out.

    Raises:
        RequestOrderError: If a task in effect does not match the request at its position.
        ValueError: If `requests` is not a list of requests.
    """
    if not isinstance(requests, (list, tuple)):
        raise InvalidInputError("requests", requests, "a list of ForgetRequest", "Write [request].")
    asked = [frozenset(_ids(request, ledger, names)) for request in requests]
    revoked = _revoked(ledger)
    active = ledger.active_tasks
    in_order = iter([entry for entry in active if frozenset(entry.classes or ()) not in revoked])
    again = {frozenset(entry.classes or ()): entry for entry in active if frozenset(entry.classes or ()) in revoked}
    found: list[TaskEntry | None] = []
    for number, classes in enumerate(asked, start=1):
        entry = again.pop(classes, None) if classes in revoked else next(in_order, None)
        if entry is not None and set(entry.classes or ()) != classes:
            raise RequestOrderError(
                f"request {number} asks for the classes {sorted(classes)}, but {entry.name} in '{ledger.folder}' "
                f"forgot {entry.classes}. Give the requests in the order they were carried out, or choose another "
                "folder.",
                task=entry.name,
            )
        found.append(entry)
    _check_complete([entry for entry in found if entry is not None], active, ledger)
    return found


def _check_complete(done: Sequence[TaskEntry], active: Sequence[TaskEntry], ledger: ForgettingLedger) -> None:
    """Checks that no task in effect before the last matched one is missing among the requests."""
    names = {entry.name for entry in done}
    if skipped := [entry for entry in active[: len(done)] if entry.name not in names]:
        entry = skipped[0]
        raise RequestOrderError(
            f"the requests leave out the classes {entry.classes}, which {entry.name} in '{ledger.folder}' forgot "
            "before others of them. Give all requests that were carried out, or choose another folder.",
            task=entry.name,
        )


def check_requests(
    requests: Sequence[ForgetRequest],
    ledger: ForgettingLedger,
    names: Sequence[str] | None,
    split: Callable[[Sequence[int], Sequence[int]], ForgettingSplit],
) -> list[int]:
    """Checks that requests can be carried out one after another.

    Args:
        requests (`Sequence[ForgetRequest]`):
            The requests, in order.
        ledger ([`ForgettingLedger`]):
            The ledger of the run.
        names (`Sequence[str]`, *optional*):
            Names of all classes, in the order of their ids.
        split (`Callable`):
            Takes the ids of the classes to forget and of those forgotten before. Raises ValueError if the data has no
            samples of the former, or nothing else to keep.

    Returns:
        `list[int]`: Ids of all classes that are forgotten at the end.

    Raises:
        UnknownClassError: If a class does not exist.
        LedgerError: If a class is forgotten already, by a task or by an earlier request.
        ValueError: If the data does not suffice.
    """
    forgotten = ledger.forgotten_classes
    for number, request in enumerate(requests, start=1):
        classes = resolve_request(request, ledger, names)
        if again := [class_id for class_id in classes if class_id in forgotten]:
            raise AlreadyForgottenError(
                f"request {number} of those left asks for the classes {again}, which an earlier one forgets. Leave "
                "them out.",
                classes=again,
                task=None,
            )
        split(classes, forgotten)
        forgotten = [*forgotten, *classes]
    return forgotten


def _revoked(ledger: ForgettingLedger) -> set[frozenset[int]]:
    return {frozenset(entry.classes or ()) for entry in ledger.tasks if entry.status == "revoked"}


def _already_forgotten_message(class_id: int, earlier: TaskEntry, ledger: ForgettingLedger) -> str:
    redo = f'`forgetter.redo("{earlier.name}")` (--redo of the examples) carries out that request again'
    state = next(state for state in task_states(ledger.tasks) if state.entry is earlier)
    if state.forgotten is False:
        return (
            f"{earlier.name} was to forget class {class_id} at {earlier.finished_at}, but its classes are still "
            f"recognised. {redo}, with other settings."
        )
    return (
        f"class {class_id} was already forgotten by {earlier.name} at {earlier.finished_at}. Leave it out of the "
        f"request. {redo}."
    )


def _ids(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    if not isinstance(request, ForgetRequest):
        raise PrivateInputError("request", request, "a ForgetRequest", "Write ForgetRequest(['church']).")
    for entry in ledger.active_tasks:
        if entry.classes is None:
            raise WithheldClassesError(
                f"the ledger in '{ledger.folder}' withholds the classes of {entry.name}, so they cannot be kept out "
                "of the training. Continue in the folder of the original run.",
                tasks=[entry.name],
            )
    return resolve_classes(request.classes, names=names, num_classes=ledger.base_model.get("num_labels"))
