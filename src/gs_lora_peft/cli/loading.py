"""Loading what a command names: model, processor and data, by folder, file or Hub id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import datasets
import transformers
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.naming import camelcase_to_snakecase
from transformers import AutoConfig, AutoModelForImageClassification, AutoProcessor, PreTrainedModel
from transformers.utils import CONFIG_NAME

from .. import models
from ..data import EVALUATION_SPLITS, align_known_labels, evaluation_split, prepare_boxes
from ..errors import InvalidInputError
from ..hub import find_source
from ..objectives import is_detector

_CARD = "README.md"


class ModelOptions(Protocol):
    """Options that name a model."""

    model_name_or_path: Any
    model_revision: str | None


class DataOptions(Protocol):
    """Options that name data."""

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


def model_class(source: dict[str, Any]) -> type[PreTrainedModel]:
    """Returns the class that a model was saved with; an image classifier if neither library has it.

    Args:
        source (`dict`):
            Keyword arguments of `from_pretrained`.
    """
    name = (AutoConfig.from_pretrained(**source).architectures or [""])[0]
    found: Any = getattr(transformers, name, None) or getattr(models, name, AutoModelForImageClassification)
    return found


def load_processor(source: dict[str, Any]) -> Any:
    """Returns the processor saved with a model; `None` without one, because prepared data need none."""
    try:
        return AutoProcessor.from_pretrained(**source)
    except (OSError, ValueError, KeyError, ImportError):
        return None


def with_ids_of(model: PreTrainedModel, dataset: Any, column: str | None, box_format: Any = "xywh") -> tuple[Any, str]:
    """Returns data with the class ids of a model, and the column of its labels or annotated boxes.

    Args:
        model (`transformers.PreTrainedModel`):
            The model.
        dataset (`datasets.DatasetDict`):
            The data.
        column (`str`, *optional*):
            By default `"objects"` for a detector, else `"label"`.
        box_format (`"xywh"` or `"xyxy"`):
            Format of boxes.
    """
    names = model.config.label2id or model.config.id2label
    if is_detector(model):
        column = column or "objects"
        return prepare_boxes(dataset, column, label2id=names, box_format=box_format, invalid="drop"), column
    column = column or "label"
    return align_known_labels(dataset, column, names) if names else dataset, column


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
