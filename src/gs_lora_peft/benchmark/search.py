"""The search for learning rates and hyper-parameters: the same budget for every method, and no test data."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from torch import nn

from ..audit import AMONG_ALL, Auditor, Subject
from ..data import train_validation_split
from ..errors import InvalidInputError
from ..io import write_json_atomic
from ..metrics import measure_of
from .cells import FORGOTTEN, carry_out_requests, is_error, make_forgetter, note_error
from .parts import Entry, SearchSettings, slug
from .plan import SCHEMA, Bench, Scenario, held_out_classes

SEARCH_FOLDER = "search"
RECOVERED, CHOSEN = "recovered", "chosen"  # columns of the trials
_RATE = "learning_rate"

Trial = dict[str, Any]


class Search:
    """The search for one method and setting, trial by trial.

    Args:
        bench ([`Bench`]):
            The benchmark, with a search.
        method (`str`):
            Name of the method.
        scenario ([`Scenario`]):
            The setting.
    """

    def __init__(self, bench: Bench, method: str, scenario: Scenario):
        assert bench.config.search is not None
        self.bench, self.entry, self.settings = bench, bench.entry(method), bench.config.search
        self.scenario = search_scenario(bench, scenario, self.settings)
        space = dict(self.entry.make().space)
        content = [bench.entry_facts(self.entry), space, self.scenario.facts(), asdict(self.settings)]
        # Without the name of the setting: those whose trials are the same share them.
        self.name = slug(method, bench.digest(method, *content))
        self.path = bench.output / SEARCH_FOLDER / f"{self.name}.json"

    def trials(self) -> list[Trial] | None:
        """Returns the trials of a finished search; `None` if it is not finished."""
        stored = self._stored()
        return stored["trials"] if stored.get("finished") else None

    def carry_out(self) -> list[Trial]:
        """Carries out the trials that are missing. One that fails counts as the worst."""
        done = {trial["trial"]: trial for trial in self._stored().get("trials", [])}
        for number, options in enumerate(candidates_of(self.entry, self.settings)):
            if number not in done:
                done[number] = {"trial": number, "options": options, **self._tried(number, options)}
                self._store(done.values(), finished=False)
        self._store(done.values(), finished=True)
        return self.trials() or []

    def best(self) -> Trial | None:
        """Returns the trial that a finished search chose, see [`best_of`]; `None` if it is not finished."""
        trials = self.trials()
        return None if trials is None else best_of(trials, self.settings.tolerance)

    def forget_failed(self) -> None:
        """Drops the trials that ended with an error, so that they are carried out again."""
        trials = self._stored().get("trials", [])
        if any(map(is_error, trials)):
            self._store([trial for trial in trials if not is_error(trial)], finished=False)

    def _tried(self, number: int, options: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.bench.output / SEARCH_FOLDER / f"{self.name}-{number}"
        try:
            data = held_out(self.bench, self.settings)
            forgetter = make_forgetter(
                self.bench, self.entry.name, self.scenario, self.settings.seed, options, folder, dataset=data
            )
            last = carry_out_requests(forgetter, self.scenario.requests, folder / "times.json")[-1]
            key = measure_of(last).key
            return {
                "h_mean": last["h_mean"],
                **{key(role): last[key(role)] for role in ("retain", "forget")},
                RECOVERED: recovered(self.bench, forgetter.model, data, self.scenario.forgotten, self.settings.seed),
                "outcome": last["outcome"],
                "seconds": round(last["seconds"], 3),
            }
        except Exception:
            return {"h_mean": None, "outcome": note_error(self.bench.output, f"{self.name}-{number}")}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _stored(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        return stored

    def _store(self, trials: Iterable[Trial], *, finished: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        in_order = sorted(trials, key=lambda trial: trial["trial"])
        write_json_atomic(self.path, {"schema": SCHEMA, "finished": finished, "trials": in_order})


def candidates_of(entry: Entry, settings: SearchSettings) -> list[dict[str, Any]]:
    """Returns what the trials of a method have: first what is published, then draws without repetition.

    The draws go through all learning rates, in random order, before one has a second trial.

    Args:
        entry ([`Entry`]):
            The method.
        settings ([`SearchSettings`]):
            The search.

    Returns:
        `list[dict]`: `training` and `hyper_parameters` of each trial; empty for the first one.
    """
    method = entry.make()
    rng = np.random.default_rng([settings.seed, zlib.crc32(entry.name.encode())])
    rates: list[float | None] = list(settings.learning_rates) if method.takes_steps else [None]
    names = [name for name in method.space if name not in entry.hyper_parameters and name not in entry.training]
    combinations = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(method.space[name] for name in names))
    ]
    fields = {item.name for item in dataclasses.fields(method)}
    columns = []
    for place in rng.permutation(len(rates)):
        column = []
        for number in rng.permutation(len(combinations)):
            chosen = combinations[number]
            if rates[place] is None and all(getattr(method, name, None) == value for name, value in chosen.items()):
                continue  # what is published, once more
            training = {name: value for name, value in chosen.items() if name not in fields}
            training |= {} if rates[place] is None else {_RATE: rates[place]}
            own = {name: value for name, value in chosen.items() if name in fields}
            column.append({"training": training, "hyper_parameters": own})
        columns.append(column)
    drawn = [found for row in itertools.zip_longest(*columns) for found in row if found is not None]
    return [{}, *drawn[: settings.trials - 1]]


def recovered(
    bench: Bench, model: nn.Module, data: Mapping[str, Dataset], forgotten: Sequence[int], seed: int
) -> float | None:
    """How much nearest class means recover of the forgotten classes, in points, mean over the places of the model.

    H does not see what is only silent. There are no retrained models for the classes of a trial, so that this figure
    says nothing by itself: it tells trials of one method apart.

    Args:
        bench ([`Bench`]):
            The benchmark.
        model (`torch.nn.Module`):
            The model of a trial, with or without adapters.
        data (`Mapping[str, Dataset]`):
            What the trial trained on, and what judges it.
        forgotten (`Sequence[int]`):
            The classes that it forgot.
        seed (`int`):
            Seed of the audit.

    Returns:
        `float`, or `None` for a detector.
    """
    auditor = Auditor(bench.model, dict(data), forgotten, attacks=["centroid"], seed=seed, **bench.loading)
    context, (attack,) = auditor.context, auditor.attacks
    if not attack.fits(context):
        return None
    found = attack.run(Subject("forgotten", "forgotten", model), context)
    return float(np.mean([figure.value for figure in found if figure.setting.startswith(AMONG_ALL)]))


def best_of(trials: list[Trial], tolerance: float = 0.0) -> Trial:
    """Returns the best trial: among those that forgot and whose H is near the largest, the one that recovers least.

    A trial that did not forget would win by H alone over one that forgot, and then rank behind all others.

    Args:
        trials (`list[dict]`):
            Finished trials.
        tolerance (`float`, *optional*, defaults to 0):
            How far, in points, H may be below the largest one.
    """

    def score(trial: Trial) -> float:
        return -1.0 if trial.get("h_mean") is None else round(trial["h_mean"], 4)

    def least(*figures: float | None) -> tuple[float, ...]:
        return tuple(math.inf if figure is None else figure for figure in figures)

    forgot = [trial for trial in trials if trial.get("outcome") == FORGOTTEN] or trials
    enough = max(map(score, forgot)) - tolerance / 100
    near = [trial for trial in forgot if score(trial) >= enough]
    return min(near, key=lambda trial: (*least(trial.get(RECOVERED)), -score(trial), *least(_known(trial))))


def _known(trial: Trial) -> float | None:
    """How well the classes to forget are still recognised."""
    return trial.get(measure_of(trial).key("forget"))


def search_scenario(bench: Bench, scenario: Scenario, settings: SearchSettings) -> Scenario:
    """Returns a setting like the given one, with classes that the benchmark never forgets.

    Raises:
        InvalidInputError: If there is none.
    """
    taken = {*scenario.missing, *(c for one in bench.scenarios.values() for c in one.forgotten)}
    others = [class_id for class_id in scenario.present if class_id not in taken]
    requests = held_out_classes(scenario, others, settings.requests, settings.seed)
    if not requests:
        fix = "Forget fewer classes, or leave `search` out."
        raise InvalidInputError("search", f"{len(others)} other classes", "a class that no setting forgets", fix)
    return replace(scenario, requests=requests)


def held_out(bench: Bench, settings: SearchSettings) -> DatasetDict:
    """Returns the training data in two parts: to train on, and, under the name of `test`, to judge trials on."""
    train, judged = train_validation_split(
        bench.dataset["train"], bench.label_column, settings.fraction, settings.seed
    )
    return DatasetDict(train=train, test=judged)
