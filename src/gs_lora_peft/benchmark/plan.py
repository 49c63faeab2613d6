"""The benchmark on one model and data set: resolved classes, cells, and what tells one cell from another."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from .. import __version__
from ..adapters import weights_fingerprint
from ..audit import Samples
from ..data import (
    check_names,
    continual_protocol,
    default_collator,
    evaluation_split,
    read_classes,
    resolve_classes,
    train_validation_split,
)
from ..errors import InvalidInputError
from ..io import sha256_of
from ..objectives import check_class_head
from ..roles import ClassRoles
from ..runs import names_of_head
from ..training import Method
from .parts import AuditSettings, Entry, Setting
from .settings import BenchmarkConfig

SCHEMA = "gs_lora_peft.benchmark/1"
_DIGESTED_ROWS = 16
_OF_PYTHON = sys.stdlib_module_names - {"__main__"}


@dataclass(frozen=True)
class Scenario:
    """A setting with the ids of its classes.

    Args:
        setting ([`Setting`]):
            The setting.
        requests (`list[list[int]]`):
            The classes of each request.
        missing (`list[int]`):
            The classes to keep without training data.
        present (`list[int]`):
            All classes of the data.
    """

    setting: Setting
    requests: list[list[int]]
    missing: list[int]
    present: list[int]

    @property
    def name(self) -> str:
        return self.setting.name

    @property
    def forgotten(self) -> list[int]:
        """All classes that are forgotten at the end."""
        return sorted(class_id for classes in self.requests for class_id in classes)

    @property
    def roles(self) -> ClassRoles:
        """The roles of the classes in the last request."""
        old = [class_id for classes in self.requests[:-1] for class_id in classes]
        return ClassRoles.of(self.requests[-1], old, self.missing, present=self.present)

    def facts(self) -> dict[str, Any]:
        """Returns what a run depends on, as JSON types."""
        setting = self.setting
        return {
            "requests": self.requests,
            "missing": self.missing,
            "shots": setting.shots,
            "replay_ratio": setting.replay_ratio,
            "train_fraction": setting.train_fraction,
        }


@dataclass(frozen=True)
class Cell:
    """One run: a method (or a yardstick), a setting and a seed."""

    method: str
    scenario: str
    seed: int


@dataclass
class Bench:
    """The benchmark with model and data. Worker processes get a copy.

    Args:
        config ([`BenchmarkConfig`]):
            What is compared.
        model (`transformers.PreTrainedModel`):
            The base model, which is not changed.
        dataset (`datasets.DatasetDict` or `dict`):
            Labelled samples, `train` and a split to score on.
        processing_class (*optional*):
            As in [`ContinualForgetter`].
        data_collator (`Callable`, *optional*):
            As in [`ContinualForgetter`].

    Raises:
        InvalidInputError: If the data lack a split or a class, or do not fit the model.
    """

    config: BenchmarkConfig
    model: PreTrainedModel
    dataset: Mapping[str, Dataset]
    processing_class: Any = None
    data_collator: Callable | None = None
    scenarios: dict[str, Scenario] = field(init=False)

    def __post_init__(self) -> None:
        check_class_head(self.model)
        test = evaluation_split(self.dataset) if isinstance(self.dataset, dict) else None
        if test is None or "train" not in self.dataset:
            found = list(self.dataset) if isinstance(self.dataset, dict) else type(self.dataset).__name__
            raise InvalidInputError("dataset", found, "the splits 'train' and 'test'")
        self.dataset = DatasetDict(train=self.dataset["train"], test=self.dataset[test])
        self._labels = [read_classes(part, self.label_column)[0] for part in self.dataset.values()]
        check_names(self._names, self.model, repr(self.label_column))
        self.data_collator = self.data_collator or default_collator(
            self.processing_class, self.label_column, self.dataset["train"]
        )
        # Of the start: an edit of the file meanwhile belongs to the next benchmark.
        self._sources = {entry.name: _source_of(entry.make()) for entry in self.config.methods}
        self.scenarios = {setting.name: self._resolved(setting) for setting in self.config.settings}

    @property
    def label_column(self) -> str:
        """Column of the labels, or of annotated boxes."""
        return str(self.config.data.get("label_column", "label"))

    @property
    def output(self) -> Path:
        """Folder of results and of everything unfinished."""
        return Path(self.config.output)

    @property
    def loading(self) -> dict[str, Any]:
        """How rows become batches, as keyword arguments."""
        return {
            "label_column": self.label_column,
            "processing_class": self.processing_class,
            "data_collator": self.data_collator,
        }

    @cached_property
    def _names(self) -> list[str] | None:
        names = read_classes(self.dataset["train"], self.label_column)[1]
        return names or names_of_head(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base model's weights."""
        return weights_fingerprint(self.model)

    @cached_property
    def data_digest(self) -> str:
        """Tells data sets apart, and ways to prepare the same one: by all labels, and the tensors of some rows."""
        content = hashlib.sha256(b"".join(labels.astype("<i8").tobytes() for labels in self._labels))
        assert self.data_collator is not None
        for part in self.dataset.values():
            samples = Samples(part, self.data_collator, self.label_column)
            set_seed(0)  # random augmentation then gives the same tensors in every call
            batch = samples.batch(np.unique(np.linspace(0, len(part) - 1, _DIGESTED_ROWS).astype(int)))
            tensors = {name: value.float() for name, value in batch.items() if isinstance(value, Tensor)}
            content.update(f"{len(part)} {weights_fingerprint(tensors)}".encode())
        return content.hexdigest()[:16]

    def entry(self, name: str) -> Entry:
        """Returns the method of a name."""
        return next(entry for entry in self.config.methods if entry.name == name)

    def fresh_model(self) -> PreTrainedModel:
        """Returns a copy of the base model."""
        return copy.deepcopy(self.model)

    def data_of(
        self, scenario: Scenario, seed: int, data: Mapping[str, Dataset] | None = None
    ) -> Mapping[str, Dataset]:
        """Returns the data that a run with a seed may use: a share of the training samples, if the setting says so."""
        data, share = self.dataset if data is None else data, scenario.setting.train_fraction
        if share == 1:
            return data
        chosen, _ = train_validation_split(data["train"], self.label_column, 1 - share, seed)
        return DatasetDict(train=chosen, test=data["test"])

    def cells(self) -> Iterator[Cell]:
        """Yields the runs of all methods, seed by seed, so that early results cover every method."""
        for seed in self.config.seeds:
            for scenario in self.scenarios:
                for entry in self.config.methods:
                    yield Cell(entry.name, scenario, seed)

    def digest(self, *content: Any) -> str:
        """Identifies a result by what it depends on, with the version of this package, but not those of others."""
        text = json.dumps(
            [SCHEMA, __version__, self.fingerprint, self.config.model_config, self.data_digest, *content],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def audit_of(self, scenario: str) -> AuditSettings | None:
        """Returns the audit of a setting; `None` without one, also where models are given for other settings alone."""
        audit = self.config.audit
        return None if audit is None or (audit.given is not None and scenario not in audit.given) else audit

    def audit_facts(self, scenario: str) -> dict[str, Any] | None:
        """Returns what figures of the audit depend on, as JSON types: neither the folder nor the controls."""
        if (audit := self.audit_of(scenario)) is None:
            return None
        facts = {name: value for name, value in asdict(audit).items() if name not in ("cache", "controls")}
        if audit.given is None:
            return facts
        models = [sha256_of(Path(folder) / "model.safetensors") for folder in audit.given[scenario]]
        return {**facts, "references": len(models), "recipe": None, "given": models}

    def entry_facts(self, entry: Entry) -> dict[str, Any]:
        """Returns what a run of a method depends on, as JSON types."""
        method = entry.make()
        adapter = {**getattr(method, "adapter", {}), **entry.adapter}
        own: dict[str, Any] = {"method": method.settings(), "trains": method.trains, "adapter": adapter}
        if ":" in entry.method:  # a method of one's own, whose file changes
            own["source"] = self._sources[entry.name]
        return {**own, "training": self.config.training_of(entry)}

    def _resolved(self, setting: Setting) -> Scenario:
        where = f"settings[{setting.name!r}]"
        trained, scored = (sorted(set(labels.tolist())) for labels in self._labels)
        present = sorted({*trained, *scored})
        if setting.protocol is not None:
            tasks = continual_protocol(len(trained), setting.protocol)
            requests = [[trained[place] for place in task] for task in tasks]
        else:
            requests = [self._ids(classes) for classes in setting.requests or ()]
        named = [class_id for classes in requests for class_id in classes]
        if twice := sorted({class_id for class_id in named if named.count(class_id) > 1}):
            raise InvalidInputError(f"{where}.requests", twice, "each class in one request at most")
        kept = [class_id for class_id in trained if class_id not in named]
        if isinstance(setting.missing_classes, int):
            missing = kept[: setting.missing_classes]
        else:
            missing = self._ids(setting.missing_classes) if setting.missing_classes else []
        if shared := sorted(set(missing) & set(named)):
            raise InvalidInputError(f"{where}.missing_classes", shared, "classes that no request forgets")
        if not set(kept) - set(missing):
            raise InvalidInputError(where, f"{len(named)} classes", "a class with data that stays to the end")
        missing = sorted({*missing, *(set(scored) - set(trained) - set(named))})
        return Scenario(setting, requests, missing, present)

    def _ids(self, classes: Sequence[str | int]) -> list[int]:
        return resolve_classes(classes, names=self._names)


def _source_of(method: Method) -> list[str]:
    """Hashes of the files of a method's class and of those that it derives from, besides this package and Python's."""
    hashes = []
    for kind in type(method).__mro__:
        if (room := kind.__module__.partition(".")[0]) == __package__.partition(".")[0] or room in _OF_PYTHON:
            continue
        try:
            hashes.append(sha256_of(inspect.getfile(kind)))
        except (OSError, TypeError):  # made without a file
            continue
    return hashes


def held_out_classes(scenario: Scenario, others: Sequence[int], requests: int | None, seed: int) -> list[list[int]]:
    """Draws other classes than a benchmark forgets, as many for each request, as long as one class is left.

    Args:
        scenario ([`Scenario`]):
            The setting.
        others (`Sequence[int]`):
            Classes that no setting forgets and none misses.
        requests (`int`, *optional*):
            Number of requests, from the first.
        seed (`int`):
            Seed of the draw.
    """
    drawn = np.random.default_rng(seed).permutation(sorted(others)).tolist()
    chosen: list[list[int]] = []
    for classes in scenario.requests[:requests]:
        taken, drawn = drawn[: len(classes)], drawn[len(classes) :]
        if not taken or (len(taken) < len(classes) and chosen):
            break
        chosen.append(sorted(taken))
    return chosen
