"""What a benchmark compares and how, read from a YAML file. Everything is checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field

from ..checking import Count, NotNegativeWhole, check_fields, checked, ordered_list
from ..errors import InvalidInputError
from ..io import StrPath, as_path
from ..methods import METHODS
from ..training import GSLoraTrainingArguments, only_read
from .parts import OWN_ARGUMENTS, AuditSettings, Entry, Options, SearchSettings, Setting, check_training, slug

_Seeds = Annotated[
    list[NotNegativeWhole],
    BeforeValidator(ordered_list),
    Field(min_length=1, description="a list of different seeds from 0"),
]
_Items = Annotated[list[Any], BeforeValidator(ordered_list), Field(description="a list")]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Everything that a benchmark depends on besides model and data.

    Args:
        settings (`list`):
            Sequences of requests, see [`Setting`]; dicts of their fields.
        methods (`list`):
            Names in `METHODS` and `"module:Class"`, or dicts of the fields of [`Entry`]. `"all"` stands for all names
            in `METHODS` that the list does not have.
        output (`str` or `os.PathLike`):
            Folder of results, tables and figures. The same benchmark goes on in it.
        model (`str`, *optional*):
            Folder or Hub id of the base model.
        dataset (`str`, *optional*):
            Folder, file or Hub id of the data.
        model_config (`dict`, *optional*):
            Changes to the configuration of the model, such as `{margin_at_eval: true}` of a face model.
        data (`dict`, *optional*):
            `config_name`, `train_split`, `test_split`, `image_column` and `label_column` of the data.
        seeds (`list[int]`, *optional*, defaults to `[0, 1, 2]`):
            One run of every method and setting for each.
        training (`dict`, *optional*):
            Training arguments of all methods that read them. Those that a method publishes win over them.
        fixed_training (`dict`, *optional*):
            Training arguments of all methods that read them, which win over the published ones, such as `max_steps`.
        audit (`dict` or `None`, *optional*):
            See [`AuditSettings`]; `None`: no audit, and no comparison with retrained models.
        search (`dict` or `None`, *optional*):
            See [`SearchSettings`]; `None`, the default: published settings as they are.
        processes (`int` or `"auto"`, *optional*, defaults to `"auto"`):
            Runs at a time. `"auto"`: one for each CPU core, or one with an accelerator.
        keep_runs (`bool`, *optional*, defaults to `False`):
            Whether the folders of finished runs stay. Otherwise only the weights that a run changed stay, if they take
            16 MiB at most. Another audit then needs no training either.
        name_classes (`bool`, *optional*, defaults to `False`):
            Whether results name the ids of the classes of each request. By default they say how many.
    """

    settings: Sequence[Setting]
    methods: Sequence[Entry]
    output: StrPath = "runs/benchmark"
    model: str | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    training: Mapping[str, Any] = field(default_factory=dict)
    fixed_training: Mapping[str, Any] = field(default_factory=dict)
    audit: AuditSettings | None = field(default_factory=AuditSettings)
    search: SearchSettings | None = None
    processes: Count | Literal["auto"] = "auto"
    keep_runs: bool = False
    name_classes: bool = False

    def __post_init__(self) -> None:
        made = {
            "settings": [_made(Setting, item, "settings") for item in checked("settings", self.settings, _Items)],
            "methods": _entries(checked("methods", self.methods, _Items)),
            "audit": None if self.audit is None else _made(AuditSettings, self.audit, "audit"),
            "search": None if self.search is None else _made(SearchSettings, self.search, "search"),
            "output": as_path(self.output, "output"),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        check_fields(self)
        checked("seeds", self.seeds, _Seeds)
        for name in ("settings", "methods", "seeds"):
            values = [getattr(item, "name", item) for item in getattr(self, name)]
            if not values:
                raise InvalidInputError(name, [], "at least one")
            fix = "Name each seed once." if name == "seeds" else "Give one of them another `name`."
            if twice := [value for index, value in enumerate(values) if value in values[:index]]:
                raise InvalidInputError(name, twice[0], f"different {'seeds' if name == 'seeds' else 'names'}", fix)
            files = [slug(value) for value in values]
            if alike := [values[index] for index, file in enumerate(files) if file in files[:index]]:
                raise InvalidInputError(
                    name, alike[0], "names that differ in letters from a to z, digits or dots", fix
                )
        if "search" in [slug(setting.name) for setting in self.settings]:
            raise InvalidInputError("settings", "search", "a name that no other table has", "Choose another `name`.")
        for name in ("training", "fixed_training"):
            check_training(name, getattr(self, name))
            self._check_read(name)
        checked("model_config", self.model_config, Options)
        if self.audit is not None:
            self.audit.check_given([setting.name for setting in self.settings])
        known = {"config_name", "train_split", "test_split", "image_column", "label_column"}
        if unknown := sorted(set(checked("data", self.data, Options)) - known):
            raise InvalidInputError("data", unknown, f"keys among {sorted(known)}")
        for entry in self.methods:
            args = self.arguments(entry, "checked", 0)
            entry.make().check(args)
            entry.adapter_config(args)

    @classmethod
    def read(cls, file: StrPath, **changes: Any) -> Self:
        """Reads a YAML file; `changes` replace its keys.

        Raises:
            InvalidInputError: If it is not YAML, a key is unknown or a value is wrong.
        """
        path = as_path(file, "config")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InvalidInputError("config", str(path), f"a YAML file ({' '.join(str(error).split())})") from None
        return cls.of({**checked("config", given, Options), **changes})

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Makes the configuration of plain values, as a file gives them."""
        made: Self = _made(cls, given, "config")
        return made

    def with_methods(self, more: Sequence[str], *, only: bool = False) -> Self:
        """Returns the benchmark with further methods, or with them alone. Known entries keep their settings."""
        known = {entry.name: entry for entry in self.methods}
        chosen = [known.get(name) or Entry(method=name) for name in more]
        before = [] if only else [entry for entry in self.methods if entry not in chosen]
        return replace(self, methods=[*before, *chosen])

    def _check_read(self, name: str) -> None:
        """Refuses common training arguments that none of the methods reads."""
        given, methods = getattr(self, name), [entry.make() for entry in self.methods]
        read = {option for method in methods for option in only_read(given, method.reads)}
        if unread := [option for option in given if option not in read]:
            fix = "Leave it out, or add a method that reads it."
            raise InvalidInputError(name, unread, "arguments that one of the methods reads", fix)

    def training_of(self, entry: Entry, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns training arguments: common, published, fixed, the method's own, then what a search found.

        Common and fixed ones are for all methods: each gets those that it reads.
        """
        method = entry.make()
        published = {name: value for name, value in method.published.items() if name not in OWN_ARGUMENTS}
        common, fixed = (only_read(shared, method.reads) for shared in (self.training, self.fixed_training))
        return {**common, **published, **fixed, **entry.training, **(found or {})}

    def arguments(
        self, entry: Entry, folder: StrPath, seed: int, found: Mapping[str, Any] | None = None
    ) -> GSLoraTrainingArguments:
        """Returns the training arguments of a run."""
        given = {"save_strategy": "no", "logging_strategy": "no", "dataloader_pin_memory": False}
        own = {"output_dir": str(folder), "seed": seed, "disable_tqdm": True, "report_to": "none"}
        return GSLoraTrainingArguments(**{**given, **self.training_of(entry, found), **own})


def _entries(items: list[Any]) -> list[Entry]:
    """Makes the methods; `"all"` becomes those that are not named."""
    given = [item for item in items if item != "all"]
    made = [_made(Entry, {"method": item} if isinstance(item, str) else item, "methods") for item in given]
    known = {entry.name for entry in made}
    return made + [Entry(method=name) for name in METHODS if "all" in items and name not in known]


def _made(kind: Any, given: Any, name: str) -> Any:
    """Makes a dataclass of a dict. Unknown and missing keys are refused."""
    if isinstance(given, kind):
        return given
    values = checked(name, given, Options)
    known = {item.name: item for item in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise InvalidInputError(name, unknown, f"keys among {list(known)}", "Correct or remove these.")
    needed = [n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    if absent := [n for n in needed if n not in values]:
        raise InvalidInputError(name, sorted(values), f"also the keys {absent}", "Add them.")
    return kind(**values)
