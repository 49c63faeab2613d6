"""The steps that scripts share: load model and data, make a forgetter, carry out requests, publish."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.naming import camelcase_to_snakecase
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..data import EVALUATION_SPLITS, evaluation_split, resolve_classes
from ..errors import InvalidInputError
from ..hub import find_source, push_to_hub
from ..ledger import ForgetRequest
from ..runs import ContinualForgetter
from ..training import GSLoraTrainingArguments, adapter_of_recipe, repo_to_publish_in
from .settings import AdapterArguments, RunArguments, missing_classes

_CARD = "README.md"


class ModelOptions(Protocol):
    """Options of a script that name its model."""

    model_name_or_path: Any
    model_revision: str | None


class DataOptions(Protocol):
    """Options of a script that name its data."""

    dataset_name: Any
    dataset_config_name: str | None
    train_split: str
    test_split: str | None
    image_column: str | None


def model_source(script: ModelOptions) -> dict[str, Any]:
    """Returns keyword arguments of `from_pretrained` for the model of `--model_name_or_path`.

    Raises:
        InvalidInputError: If there is neither a folder nor a repository of that name, or `--model_revision` is given
            with a folder.
        ConnectionError: If the Hub is out of reach, and the cache does not hold the model.
    """
    name, revision = script.model_name_or_path, script.model_revision
    found = find_source(name, "--model_name_or_path", "the folder of a model", filename=CONFIG_NAME, revision=revision)
    if found.is_local:
        refuse_ignored(script, ["model_revision"], f"the model is the folder '{found.place}', which has no revisions")
    return {
        "pretrained_model_name_or_path": found.place,
        "revision": revision,
        "local_files_only": found.is_away,
    }


def load_data(script: DataOptions) -> DatasetDict:
    """Loads the train and test split of `--dataset_name`. The column of the images becomes "image".

    Without the name of a column nothing is renamed.

    Raises:
        InvalidInputError: If there is neither a folder or file nor a repository of that name, a split or the column
            of the images is missing, or an option is given that has no effect on these data.
        ConnectionError: If the Hub is out of reach, and the cache does not hold the data.
    """
    dataset = _read(script)
    test = script.test_split or evaluation_split(dataset)
    if script.train_split not in dataset or test not in dataset:
        raise InvalidInputError(
            f"splits of {script.dataset_name}",
            list(dataset),
            f"{script.train_split!r} to train on and "
            f"{script.test_split or ' or '.join(map(repr, EVALUATION_SPLITS))} to score on",
            f"Set --train_split and --test_split. Without other data, --test_split {script.train_split} scores on the "
            "training data, and the table says so.",
        )
    chosen = DatasetDict(train=dataset[script.train_split], test=dataset[test])
    column = script.image_column
    return (
        chosen if column is None else DatasetDict({name: _with_image(part, column) for name, part in chosen.items()})
    )


def refuse_ignored(settings: Any, names: Iterable[str], why: str) -> None:
    """Refuses options that would have no effect.

    Args:
        settings (a dataclass):
            The options.
        names (`Iterable[str]`):
            Names of the options that have no effect.
        why (`str`):
            The reason, for the error.

    Raises:
        InvalidInputError: If one of them differs from its default.
    """
    defaults = {item.name: item.default for item in dataclasses.fields(settings)}
    if ignored := [name for name in names if getattr(settings, name) != defaults[name]]:
        first = ignored[0]
        expected = f"its default, {defaults[first]!r}, because {why}"
        fix = f"Omit {', '.join(f'--{name}' for name in ignored)}."
        raise InvalidInputError(f"--{first}", getattr(settings, first), expected, fix)


def _read(script: DataOptions) -> DatasetDict:
    found = find_source(
        script.dataset_name,
        "--dataset_name",
        "a folder or a file of data",
        filename=_CARD,
        repo_type="dataset",
        in_cache=_is_cached,
    )
    name = found.place
    if Path(name, "dataset_dict.json").is_file():
        refuse_ignored(script, ["dataset_config_name"], f"'{name}' is a saved data set, which has no configurations")
        return load_from_disk(name)
    if found.is_local and Path(name).is_file():
        refuse_ignored(script, ["dataset_config_name"], f"'{name}' is a file, which has no configurations")
        return load_dataset(Path(name).suffix.lstrip("."), data_files=name)
    with _offline() if found.is_away else nullcontext():
        return load_dataset(name, script.dataset_config_name)


@contextmanager
def _offline() -> Iterator[None]:
    """Makes `load_dataset` use its cache at once. Otherwise it first tries to reach the Hub for half a minute."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _is_cached(repo_id: str) -> bool:
    """Returns whether `load_dataset` has prepared a data set before, and finds it without the Hub."""
    *organisation, name = repo_id.split("/")
    folder = "___".join([*organisation, camelcase_to_snakecase(name)])
    prepared = Path(datasets.config.HF_DATASETS_CACHE, folder).expanduser().glob("*/*/*")
    return any(path.is_dir() for path in prepared)


def _with_image(dataset: Dataset, column: str) -> Dataset:
    if column not in dataset.column_names:
        fix = "Name the column of the images."
        raise InvalidInputError("--image_column", column, f"one of the columns {dataset.column_names}", fix)
    if column == "image":
        return dataset
    unused = [name for name in dataset.column_names if name == "image"]  # renaming needs the name
    return dataset.remove_columns(unused).rename_column(column, "image")


def make_forgetter(
    script: RunArguments,
    adapter: AdapterArguments,
    args: GSLoraTrainingArguments,
    model: PreTrainedModel,
    dataset: DatasetDict,
    label_column: str,
    processor: Any,
) -> ContinualForgetter:
    """Makes a forgetter with the settings of a script.

    Args:
        script ([`RunArguments`]):
            The options of the script.
        adapter ([`AdapterArguments`]):
            The adapter of each task.
        args ([`GSLoraTrainingArguments`]):
            The training. `output_dir` is the folder of the run. [`publish_if_asked`] publishes it, not the trainer.
        model (`transformers.PreTrainedModel`):
            The base model.
        dataset (`datasets.DatasetDict`):
            The data, with a train and a test split.
        label_column (`str`):
            The column of the labels, or of the annotated boxes.
        processor (*optional*):
            The image processor of the model.
    """
    args = copy.copy(args)
    args.push_to_hub = False
    return ContinualForgetter(
        model,
        dataset,
        str(args.output_dir),
        config=adapter_of_recipe(args.recipe, **vars(adapter)),
        args=args,
        label_column=label_column,
        processing_class=processor,
        replay_ratio=script.replay_ratio,
        shots=script.shots,
        missing_classes=missing_classes(script),
    )


def carry_out(
    forgetter: ContinualForgetter,
    requests: Sequence[ForgetRequest],
    script: RunArguments,
    args: Sequence[GSLoraTrainingArguments] | None = None,
) -> None:
    """Carries out requests, after `--redo` and with `--keep`.

    Args:
        forgetter ([`ContinualForgetter`]):
            The forgetter.
        requests (`Sequence[ForgetRequest]`):
            All requests of the run; those that are done are skipped.
        script ([`RunArguments`]):
            The options of the script.
        args (`Sequence[GSLoraTrainingArguments]`, *optional*):
            The training of each request; by default that of the forgetter for all.

    Raises:
        LedgerError, ValueError, OSError: As [`~ContinualForgetter.redo`] and [`~ContinualForgetter.run`].
    """
    if script.redo is not None:
        if args is not None:
            forgetter.recipe.args = _args_of_last(forgetter, requests, args)
        forgetter.redo(None if script.redo == "last" else script.redo)
    forgetter.run(requests, keep=script.keep or script.redo is not None, args=args)


def _args_of_last(
    forgetter: ContinualForgetter, requests: Sequence[ForgetRequest], args: Sequence[GSLoraTrainingArguments]
) -> GSLoraTrainingArguments:
    """Returns the training of the request that the last task in effect carried out, which alone can be redone."""
    tasks = forgetter.ledger.active_tasks
    classes = set(tasks[-1].classes or ()) if tasks else set()
    for request, own in zip(requests, args, strict=True):
        if set(resolve_classes(request.classes, names=forgetter.label_names)) == classes:
            return own
    return forgetter.recipe.args


def publish_if_asked(args: GSLoraTrainingArguments) -> None:
    """Publishes the whole run if `--push_to_hub` is given, and prints the address. By default it is private."""
    if args.push_to_hub:
        repo_id = repo_to_publish_in(args)
        private = args.hub_private_repo is not False
        options: dict[str, Any] = {"private": private, "revision": args.hub_revision, "token": args.hub_token}
        print(f"Hub:      {push_to_hub(str(args.output_dir), repo_id, **options)}")
