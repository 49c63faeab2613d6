"""The parts of a benchmark's configuration: settings, methods, audit and search. Each checks itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from ..audit import Attack, RetrainRecipe, get_attacks
from ..checking import (
    ClassId,
    Count,
    NotNegative,
    NotNegativeWhole,
    Number,
    Share,
    Text,
    check_fields,
    checked,
    ordered_list,
)
from ..errors import InvalidInputError
from ..methods import get_method
from ..training import GSLoraTrainingArguments, Method, adapter_of_recipe
from ..tuner import GSLoraConfig

# Rows that every table has besides the methods: the model before forgetting, and one more retrained model.
ORIGINAL, RETRAINED = "original", "retrained"
YARDSTICKS = (ORIGINAL, RETRAINED)

# Set by the benchmark itself.
OWN_ARGUMENTS = ("output_dir", "seed", "push_to_hub", "disable_tqdm", "report_to")
_Rates = Annotated[
    list[Annotated[Number, Field(gt=0)]], Field(min_length=1, description="a list of positive learning rates")
]
Options = Annotated[dict[str, Any], Field(description="names and values")]


_Classes = Annotated[
    list[Annotated[Text | ClassId, Field(description="a class name (text) or a class id (a whole number from 0 up)")]],
    BeforeValidator(ordered_list),
    Field(min_length=1, description="a list of class names or ids for each request, as [[first, second], [third]]"),
]
_Requests = Annotated[
    list[_Classes],
    BeforeValidator(ordered_list),
    Field(min_length=1, description="a list of requests, each a list of classes"),
]
_Protocol = Annotated[
    list[NotNegativeWhole], BeforeValidator(ordered_list), Field(min_length=1, description="a list of whole numbers")
]


def _classes_or_count(value: Any) -> Any:
    """Classes, or how many; a boolean is neither."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return value
    raise ValueError


_Folders = Annotated[
    list[Text], BeforeValidator(ordered_list), Field(min_length=1, description="a list of folders of models")
]
_Missing = Annotated[
    Any,
    PlainValidator(_classes_or_count),
    Field(description="a list of class names or ids, or how many: a whole number from 0 up"),
]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A sequence of requests, and the data that they may use.

    Args:
        name (`str`):
            Its name in tables.
        requests (`list[list[str | int]]`, *optional*):
            The classes of each request, by name or id.
        protocol (`list[int]`, *optional*):
            Instead of `requests`: numbers of classes left after each request, as in [`continual_protocol`].
        shots (`int`, *optional*):
            As in [`ContinualForgetter`].
        replay_ratio (`float`, *optional*, defaults to 1.0):
            As in [`ContinualForgetter`].
        train_fraction (`float`, *optional*, defaults to 1.0):
            Share of the training samples of every class that a run may use, drawn with its seed.
        missing_classes (`list[str | int]` or `int`, *optional*, defaults to none):
            Classes to keep without training data: names or ids, or how many of those that no request forgets.
    """

    name: str
    requests: Sequence[Sequence[str | int]] | None = None
    protocol: Sequence[int] | None = None
    shots: Count | None = None
    replay_ratio: Share = 1.0
    train_fraction: Share = 1.0
    missing_classes: Sequence[str | int] | int = ()

    def __post_init__(self) -> None:
        where = f"settings[{_named(self.name, 'settings.name')!r}]"
        check_fields(self, prefix=f"{where}.")
        if (self.requests is None) == (self.protocol is None):
            given = "both" if self.requests is not None else "neither"
            raise InvalidInputError(where, given, "either `requests` or `protocol`", "Give one of them.")
        if self.requests is not None:
            checked(f"{where}.requests", self.requests, _Requests)
        if self.protocol is not None:
            checked(f"{where}.protocol", self.protocol, _Protocol)
        checked(f"{where}.missing_classes", self.missing_classes, _Missing)
        if self.shots is not None and self.replay_ratio != 1:
            raise InvalidInputError(f"{where}.replay_ratio", self.replay_ratio, "1 with `shots`", "Leave one out.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method of the comparison, with settings of its own.

    Args:
        method (`str`):
            A name in `METHODS`, or `"module:Class"` of anybody.
        name (`str`, *optional*, defaults to that of the method):
            Its name in tables.
        hyper_parameters (`dict`, *optional*):
            Hyper-parameters of the method.
        training (`dict`, *optional*):
            Training arguments, in place of the common and the published ones.
        adapter (`dict`, *optional*):
            Options of [`GSLoraConfig`], for a method that trains an adapter.
        trains (`"weights"` or `"adapter"`, *optional*, defaults to `"weights"`):
            What a method trains that can train either. Most sources train all weights. The others ignore the default.
    """

    method: str
    name: str = ""
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    trains: Literal["weights", "adapter"] = "weights"

    def __post_init__(self) -> None:
        checked("methods.method", self.method, str)
        checked("methods.trains", self.trains, Literal["weights", "adapter"])
        own = self.make()
        object.__setattr__(self, "name", _named(self.name or own.name, "methods.name"))
        if self.name in YARDSTICKS:
            fix = "Every table has a row of this name: choose another one."
            raise InvalidInputError("methods.name", self.name, f"none of {list(YARDSTICKS)}", fix)
        for part in ("hyper_parameters", "training", "adapter"):
            checked(f"methods[{self.name!r}].{part}", getattr(self, part), Options)
        if self.trains == "adapter" and own.trains == "weights":
            fix = "Leave `trains` out, or choose another method."
            raise InvalidInputError(
                f"methods[{self.name!r}].trains", "adapter", "weights, which it always trains", fix
            )
        if self.adapter and own.trains == "weights":
            can_be = get_method(self.method, **self.hyper_parameters).trains == "any"
            fix = f"{'Set `trains: adapter`, or leave' if can_be else 'Leave'} it out."
            expected = "nothing, because it trains weights and has no adapter"
            raise InvalidInputError(f"methods[{self.name!r}].adapter", dict(self.adapter), expected, fix)
        check_training(f"methods[{self.name!r}].training", self.training)

    def make(self, **found: Any) -> Method:
        """Returns the method, with hyper-parameters that a search found."""
        method = get_method(self.method, **{**self.hyper_parameters, **found})
        return method.on_weights() if method.trains == "any" and self.trains == "weights" else method

    def adapter_config(self, args: GSLoraTrainingArguments) -> GSLoraConfig:
        """Returns the adapter: that of the recipe, of the method, and what is given here."""
        given = {**getattr(self.make(), "adapter", {}), **self.adapter}
        known = {item.name for item in fields(GSLoraConfig) if item.init}
        if unknown := sorted(set(given) - known):
            raise InvalidInputError(f"methods[{self.name!r}].adapter", unknown, "options of GSLoraConfig")
        return adapter_of_recipe(args.recipe, **given)


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How every model is attacked once all requests are carried out.

    Args:
        attacks (`list[str]`, *optional*):
            Names in `ATTACKS`; by default all that fit.
        quick (`bool`, *optional*, defaults to `True`):
            Whether attacks get their small budget.
        budgets (`dict`, *optional*):
            Name of an attack → fields of it, in place of its defaults.
        references (`int`, *optional*, defaults to 3):
            Number of retrained models that each model is compared with.
        controls (`int`, *optional*, defaults to 1):
            Number of further retrained models, which are attacked like a method: the row `retrained` of the tables.
        recipe (`dict`, *optional*):
            How they are trained, see [`RetrainRecipe`].
        given (`dict`, *optional*):
            Name of a setting → folders of models that were retrained without its classes, in place of the ones that
            the benchmark trains. A setting without any is not audited, and `references` and `controls` have no effect.
        max_samples (`int`, *optional*, defaults to 20000):
            As in [`Auditor`].
        seed (`int`, *optional*, defaults to 0):
            Seed of the attacks, the same for all models. The references have the seeds after it.
        cache (`str`, *optional*):
            Folder of retrained models; by default as in [`retrain`].
    """

    attacks: Sequence[str] | None = None
    quick: bool = True
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    references: Count = 3
    controls: NotNegativeWhole = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Sequence[str]] | None = None
    max_samples: Count = 20_000
    seed: NotNegativeWhole = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, prefix="audit.")
        if self.given is not None:
            checked("audit.given", self.given, dict[Text, _Folders])
        RetrainRecipe.of(self.recipe)
        self.chosen()

    def check_given(self, settings: Sequence[str]) -> None:
        """Refuses models for settings that the benchmark does not have."""
        if unknown := sorted(set(self.given or {}) - set(settings)):
            raise InvalidInputError("audit.given", unknown, f"settings among {list(settings)}")

    def chosen(self) -> list[Attack]:
        """Returns the attacks with their budgets."""
        attacks = {attack.name: attack for attack in get_attacks(self.attacks, quick=self.quick)}
        for name, budget in checked("audit.budgets", self.budgets, dict[str, Options]).items():
            if name not in attacks:
                raise InvalidInputError("audit.budgets", name, f"attacks among {list(attacks)}")
            known = [item.name for item in fields(attacks[name])]
            if unknown := sorted(set(budget) - set(known)):
                raise InvalidInputError(f"audit.budgets[{name!r}]", unknown, f"fields among {known}")
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in budget.items()}
            attacks[name] = replace(attacks[name], **given)
        return list(attacks.values())


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How learning rate and hyper-parameters of every method are chosen, before any cell of the table.

    Each trial trains on part of the training data and forgets other classes than the benchmark does; the images
    held out judge it: among the trials that forgot and whose H is at most `tolerance` below the largest, the one
    wins from whose states nearest class means recover least of the forgotten classes. Test data are never used.
    The first trial has the published settings. The others are drawn, for every method the same number.

    Args:
        trials (`int`, *optional*, defaults to 7):
            Trials of every method. A method with fewer combinations tries all of them.
        learning_rates (`list[float]`, *optional*):
            Learning rates to draw from, with the values of `Method.space`; by default six from 3e-4 to 1e-1. Whole
            weights need small ones, and adapters with a small scaling large ones.
        requests (`int`, *optional*):
            Requests of a trial, from the first of the setting; by default all.
        fraction (`float`, *optional*, defaults to 0.25):
            Share of the training images of each class that judge the trials.
        tolerance (`float`, *optional*, defaults to 1):
            Points of H that do not count as a difference, because few images are held out. With 0, H alone decides.
        seed (`int`, *optional*, defaults to 0):
            Seed of the classes, the images, the draws and the training.
    """

    trials: Count = 7
    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    requests: Count | None = None
    fraction: Annotated[Number, Field(gt=0, lt=1, description="a number between 0 and 1")] = 0.25
    tolerance: NotNegative = 1.0
    seed: NotNegativeWhole = 0

    def __post_init__(self) -> None:
        check_fields(self, prefix="search.")
        checked("search.learning_rates", list(ordered_list(self.learning_rates)), _Rates)
        if self.trials > (most := 1 + len(self.learning_rates)):
            fix = "Give more learning rates, or fewer trials."
            expected = f"at most {most}, so that every method has as many combinations to try"
            raise InvalidInputError("search.trials", self.trials, expected, fix)


def slug(*parts: Any) -> str:
    """Returns the name of a file for a result."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(part)) for part in parts)


def check_training(name: str, given: Any) -> None:
    """Refuses names that are no training arguments, and those that the benchmark sets."""
    known = {item.name for item in fields(GSLoraTrainingArguments) if item.init} - set(OWN_ARGUMENTS)
    if unknown := sorted(set(checked(name, given, Options)) - known):
        raise InvalidInputError(name, unknown, f"arguments of GSLoraTrainingArguments, without {OWN_ARGUMENTS}")


def _named(name: Any, where: str) -> str:
    """A name that stands in tables, and in the names of folders."""
    text: str = checked(where, name, str)
    if not re.fullmatch(r"[\w][\w .+()-]*", text):
        raise InvalidInputError(where, text, "letters, digits, spaces and . + - ( ), with a letter or digit first")
    return text
