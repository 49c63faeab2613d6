"""Which data a run trains on and is scored on, and whether both fit the model's head."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ..data.agreement import check_given_labels
from ..data.alignment import ALIGN, check_names, is_placeholder
from ..data.box_columns import is_object_column
from ..data.classes import check_dataset
from ..data.evaluation import EVALUATION_SPLITS, evaluation_split
from ..data.label_maps import names_of_model
from ..data.splitting import read_classes
from ..errors import InvalidInputError, located
from ..objectives import head_size

logger = logging.getLogger(__name__)


def train_and_test(dataset: Any, eval_dataset: Dataset | None) -> tuple[Dataset, Dataset, str]:
    """The data to train on, the data to score on, and what the latter is.

    Scores that are taken on the training data are warned of, once, by the main process.

    Args:
        dataset (`datasets.Dataset`, `datasets.DatasetDict` or `dict`): one data set, or several by the names of their
            splits.
        eval_dataset (`datasets.Dataset`, *optional*): scored on instead of a split.

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
        ValueError: There is no such column, labels lie outside the model's head, or the data sets or the model
            (by the names in its configuration) number the classes differently.
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
    names are taken for the numbers of the model, so that its names are theirs."""
    names, count = names_of_model(model), head_size(model)
    if not names or sorted(names) != list(range(count or len(names))):
        return None
    ordered = [names[class_id] for class_id in range(len(names))]
    return None if any(is_placeholder(name) for name in ordered) else ordered


def check_parts(train: Dataset, test: Dataset, label_column: str, collate: Any) -> None:
    """[`check_given_labels`] for the data to train on and those to score on."""
    check_given_labels({"the training data": train, "the evaluation data": test}, label_column, collate)
