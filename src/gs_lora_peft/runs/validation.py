"""Whether data and requests fit, before any request is carried out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ..data import (
    ALIGN,
    EVALUATION_SPLITS,
    check_dataset,
    check_given_labels,
    check_names,
    evaluation_split,
    is_object_column,
    is_placeholder,
    names_of_model,
    read_classes,
    resolve_classes,
)
from ..errors import InvalidInputError, located
from ..ledger import (
    AlreadyForgottenError,
    ForgetRequest,
    ForgettingLedger,
    RequestOrderError,
    TaskEntry,
    WithheldClassesError,
    task_states,
)
from ..objectives import head_size


def resolve_request(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    """Ids of the classes asked for, none of which may be forgotten already.

    Raises:
        UnknownClassError: A class does not exist.
        AlreadyForgottenError: A class was forgotten by a task in effect.
        WithheldClassesError: The ledger does not say which classes were forgotten.
    """
    classes = _ids(request, ledger, names)
    for class_id in classes:
        if earlier := ledger.task_of_class(class_id):
            message = _asked_before(_shown([class_id], names), earlier, ledger)
            raise AlreadyForgottenError(message, classes=[class_id], task=earlier.name)
    return classes


def check_missing(classes: Sequence[str | int], ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    """Checks that classes to keep without training data exist and were not forgotten; returns their ids.

    Raises:
        UnknownClassError: One does not exist.
        ValueError: If one is given twice, or was forgotten by a task in effect.
    """
    if isinstance(classes, Sequence) and not classes:
        return []
    count = ledger.base_model.get("num_labels")
    ids = resolve_classes(classes, names=names, num_classes=count, name="missing_classes")
    if gone := [class_id for class_id in ids if ledger.task_of_class(class_id)]:
        fix = f"Leave out {_shown(gone, names)}, which earlier tasks forgot."
        raise InvalidInputError("missing_classes", list(classes), "classes that are kept", fix)
    return ids


def find_done(
    requests: Sequence[ForgetRequest],
    ledger: ForgettingLedger,
    names: Sequence[str] | None,
    split: Callable[[Sequence[int], Sequence[int]], Any],
) -> tuple[list[TaskEntry | None], list[int], list[int]]:
    """What is done of a sequence of requests, and what is to be done.

    Returns:
        Three lists: the tasks as [`match_requests`] gives them; the places in the sequence that have none, in the
        order in which they are carried out, those of revoked tasks last; the classes that are forgotten at the end.

    Raises:
        LedgerError, UnknownClassError, ValueError: As [`match_requests`], or as [`check_requests`] for the rest.
    """
    found = match_requests(requests, ledger, names)
    revoked = _revoked(ledger)
    rest = [place for place, entry in enumerate(found) if entry is None]
    rest.sort(key=lambda place: frozenset(_ids(requests[place], ledger, names)) in revoked)
    return found, rest, check_requests([requests[place] for place in rest], ledger, names, split)


def _revoked(ledger: ForgettingLedger) -> set[frozenset[int]]:
    return {frozenset(entry.classes or ()) for entry in ledger.tasks if entry.status == "revoked"}


def match_requests(
    requests: Sequence[ForgetRequest], ledger: ForgettingLedger, names: Sequence[str] | None
) -> list[TaskEntry | None]:
    """The task in effect that carried out each of a sequence of requests, or `None` where there is none (any more).

    The tasks come in the order of the requests, except for requests of which a task was revoked: they are carried out
    again after all others, so that their tasks may come later.

    Raises:
        RequestOrderError: A task in effect does not belong to the request at its place.
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
    for number, (request, classes) in enumerate(zip(requests, asked, strict=True), start=1):
        entry = again.pop(classes, None) if classes in revoked else next(in_order, None)
        if entry is not None and set(entry.classes or ()) != classes:
            raise RequestOrderError(
                f"request {number} asks for {list(request.classes)!r}, but {entry.name} in '{ledger.folder}' forgot "
                f"{entry.class_names or entry.classes!r}. Give the requests in the order they were carried out, or "
                "choose another folder.",
                task=entry.name,
            )
        found.append(entry)
    _check_complete([entry for entry in found if entry is not None], active, ledger)
    return found


def _check_complete(done: Sequence[TaskEntry], active: Sequence[TaskEntry], ledger: ForgettingLedger) -> None:
    """Refuses requests that leave out one which was carried out before the last of theirs."""
    names = {entry.name for entry in done}
    if left_out := [entry for entry in active[: len(done)] if entry.name not in names]:
        entry = left_out[0]
        raise RequestOrderError(
            f"the requests leave out {entry.class_names or entry.classes!r}, which {entry.name} in '{ledger.folder}' "
            "forgot before others of them. Give all requests that were carried out, or choose another folder.",
            task=entry.name,
        )


def check_requests(
    requests: Sequence[ForgetRequest],
    ledger: ForgettingLedger,
    names: Sequence[str] | None,
    split: Callable[[Sequence[int], Sequence[int]], Any],
) -> list[int]:
    """Checks that requests can be carried out one after another; returns the classes that are forgotten then.

    Args:
        split (`Callable`):
            Takes the classes to forget and the classes forgotten before, and raises ValueError if the data has none of
            the former or nothing else.

    Raises:
        UnknownClassError, LedgerError, ValueError: One of them cannot.
    """
    forgotten = ledger.forgotten_classes
    for request in requests:
        classes = resolve_request(request, ledger, names)
        if again := [class_id for class_id in classes if class_id in forgotten]:
            raise AlreadyForgottenError(
                f"the request for {list(request.classes)!r} names {_shown(again, names)}, which an earlier one of the "
                "sequence forgets. Leave it out.",
                classes=again,
                task=None,
            )
        split(classes, forgotten)
        forgotten = [*forgotten, *classes]
    return forgotten


def _asked_before(shown: str, earlier: TaskEntry, ledger: ForgettingLedger) -> str:
    redo = f'`forgetter.redo("{earlier.name}")` (--redo of the examples) carries that request out again'
    state = next(state for state in task_states(ledger.tasks) if state.entry is earlier)
    if state.forgotten is False:
        return (
            f"{earlier.name} was to forget class {shown} at {earlier.finished_at}, but its classes are still "
            f"recognised: {redo}, with other settings."
        )
    return (
        f"class {shown} was forgotten already, by {earlier.name} at {earlier.finished_at}. Leave it out of the "
        f"request; {redo}."
    )


def _ids(request: ForgetRequest, ledger: ForgettingLedger, names: Sequence[str] | None) -> list[int]:
    if not isinstance(request, ForgetRequest):
        raise InvalidInputError("request", request, "a ForgetRequest", "Write ForgetRequest(['church']).")
    for entry in ledger.active_tasks:
        if entry.classes is None:
            raise WithheldClassesError(
                f"the ledger in '{ledger.folder}' withholds the classes of {entry.name}, so that they cannot be kept "
                "out of the training. Continue in the folder of the original run.",
                tasks=[entry.name],
            )
    return resolve_classes(request.classes, names=names, num_classes=ledger.base_model.get("num_labels"))


def _shown(classes: Sequence[int], names: Sequence[str] | None) -> str:
    return ", ".join(repr(names[class_id] if names else class_id) for class_id in classes)


logger = logging.getLogger(__name__)


def train_and_test(dataset: Any, eval_dataset: Dataset | None) -> tuple[Dataset, Dataset, str]:
    """The data to train on, the data to score on, and what the latter is.

    Scores that are taken on the training data are warned of, once, by the main process.

    Args:
        dataset (`datasets.Dataset`, `datasets.DatasetDict` or `dict`):
            One data set, or several by the names of their splits.
        eval_dataset (`datasets.Dataset`, *optional*):
            Scored on instead of a split.

    Raises:
        ValueError: There is no split `train`, or the data to train or score on are not a `datasets.Dataset`.
    """
    if not isinstance(dataset, dict):
        train, splits = dataset, {}
    elif "train" in dataset:
        train, splits = dataset["train"], dict(dataset)
    else:
        raise InvalidInputError(
            "dataset", list(dataset), "a split 'train' among others", "Rename one, or give a Dataset."
        )
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
    # The same rows under another name are training data as well. Where fingerprints differ, rows may still be equal.
    if test is train or test._fingerprint == train._fingerprint:
        title = "train"
        if PartialState().is_main_process:
            logger.warning(
                "Scores will be taken on the training data, so that they say nothing about samples not seen in "
                "training. Give `eval_dataset`, or a DatasetDict with one of the splits %s.",
                ", ".join(EVALUATION_SPLITS),
            )
    return train, test, title


def checked_label_names(train: Dataset, test: Dataset, label_column: str, model: Any) -> list[str] | None:
    """The names of the classes, by id, or `None` where labels have ids alone.

    Raises:
        ValueError: There is no such column, labels lie outside the model's head, or the data sets or the model (by the
            names in its configuration) number the classes differently.
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
            fix = f"In these {missing}: give a split that has some."
            raise InvalidInputError(f"{title} data", dataset, "labelled samples", fix)
        fix = ALIGN
        if is_object_column(dataset, label_column):
            fix = f"`gs_lora_peft.data.prepare_boxes(dataset, {label_column!r}, label2id=model.config.label2id)`"
        if count is not None and (labels.max() >= count or (names is not None and len(names) != count)):
            classes = f"{len(names)} classes" if names is not None else f"labels up to {labels.max()}"
            expected = f"the {count} classes of the model's head"
            fix = f"Use the model that was trained on these labels, or number them as the model does with {fix}."
            raise InvalidInputError(f"{title} data: {label_column}", classes, expected, fix)
        check_names(names, model, f"{title} data: {label_column!r}", fix)
        all_names.append(names)
    of_train, of_test = all_names
    if of_train is not None and of_test is not None and of_train != of_test:
        fix = "The same id would mean another class: cast both to the same ClassLabel."
        raise InvalidInputError(f"evaluation data: {label_column}", of_test, "the names of the training data", fix)
    return of_train or of_test


def names_of_head(model: Any) -> list[str] | None:
    """What a model calls the classes of its head, by id; `None` where it does not name every one. Labels without
    names are taken for the numbers of the model, so that its names are theirs.
    """
    names, count = names_of_model(model), head_size(model)
    if not names or sorted(names) != list(range(count or len(names))):
        return None
    ordered = [names[class_id] for class_id in range(len(names))]
    return None if any(is_placeholder(name) for name in ordered) else ordered


def check_parts(train: Dataset, test: Dataset, label_column: str, collate: Any) -> None:
    """[`check_given_labels`] for the data to train on and those to score on."""
    check_given_labels({"the training data": train, "the evaluation data": test}, label_column, collate)
