"""The ledger entry of one task: its fields, their checks, and the selection of tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, Strict, WithJsonSchema

from ..checking import ClassIds, Flag, NotNegativeWhole, checked
from ..errors import InvalidInputError
from ..io import relative_path_problem
from .errors import InvalidLedgerError, as_ledger_error
from .request import parse_utc
from .schema import TASKS_FOLDER, TRAINING_CONFIG, WEIGHT_DIFFERENCE, Names, plain_json

CURVE_NAMES = ("epoch", "retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy", "active_groups")

# How training logs how well the classes are known: a classifier by accuracy, a detector by confidence.
KNOWN_BY = ("accuracy", "confidence")

_OPTIONAL = {
    "missing_classes",
    "revocation",
    "curves",
    "outcome",
    "cost",
    "method_files",
}  # omitted from the file if None
# PEFT's constants, written out: importing PEFT takes seconds.
_TASK_FILES = ("adapter_config.json", "adapter_model.safetensors", TRAINING_CONFIG, WEIGHT_DIFFERENCE)


def curve_names(names: Collection[str]) -> tuple[str, ...] | None:
    """Returns the names of the training curves among logged names.

    Args:
        names (`Collection[str]`):
            Names of logged values.

    Returns:
        `tuple[str, ...]` or `None`: [`CURVE_NAMES`], for a detector with `confidence` in place of `accuracy`, and
        without `active_groups` if no adapter trained; `None` if another one is missing.
    """
    for known_by in KNOWN_BY:
        wanted = tuple(name.replace("accuracy", known_by) for name in CURVE_NAMES)
        if set(wanted[:-1]) <= set(names):
            return tuple(name for name in wanted if name in names)
    return None


def _expecting(expected: str, fits: Callable[[Any], bool]) -> AfterValidator:
    """Makes a pydantic check from a predicate and a description of valid values."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_curves(curves: dict[str, list[Any]]) -> bool:
    return curve_names(curves) is not None and len(set(map(len, curves.values()))) == 1


# Types of the fields. The values are plain JSON already, so the checks do not convert them.
TaskName = Annotated[
    str,
    Strict(),
    Field(pattern=r"^task_([0-9]{2}[1-9]|[0-9][1-9]0|[1-9]00|[1-9][0-9]{3,8})$", description="'task_001', ..."),
]
Sha256 = Annotated[str, Strict(), Field(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits")]
_Object = Annotated[dict[str, Any], Field(description="a dict")]
_JSON_NUMBER = WithJsonSchema({"type": "number"})
_Number = Annotated[Any, _expecting("a number", _is_number), _JSON_NUMBER]
_Score = Annotated[
    Any,
    _expecting("a number from 0 to 1, or None", lambda x: x is None or (_is_number(x) and 0 <= x <= 1)),
    WithJsonSchema({"type": ["number", "null"], "minimum": 0, "maximum": 1}),
]
_Verdict = Flag | None


class _Groups(BaseModel):
    active: Names = []
    zero: Names = []
    norms: dict[str, _Number] = {}


class _Scores(BaseModel):
    before: _Object = {}
    after: _Object = {}
    base: _Object = {}


class _Earlier(BaseModel):
    score: _Score = None
    forgotten: _Verdict = None


class _Outcome(_Earlier):
    target: _Score = None
    known_before: _Verdict = None
    earlier: dict[str, _Earlier] = {}


class _Cost(BaseModel):
    trainable: NotNegativeWhole = 0
    seconds: Annotated[
        Any,
        _expecting("a number, at least 0", lambda x: _is_number(x) and x >= 0),
        WithJsonSchema({"type": "number", "minimum": 0}),
    ] = 0
    peak_bytes: NotNegativeWhole = 0


_Files = dict[Annotated[str, _expecting("a path inside the folder", lambda x: not relative_path_problem(x))], Sha256]

_KINDS: dict[str, Any] = {
    **dict.fromkeys(("request", "sizes", "settings", "versions", "extra"), _Object),
    "classes": ClassIds | None,
    "class_names": Names | None,
    "missing_classes": ClassIds | None,
    "files": _Files,
    "cost": _Cost | None,
    "method_files": _Files | None,
    "groups": _Groups,
    "scores": _Scores,
    "status": Literal["done", "revoked"],
    "revocation": _Object | None,
    "curves": Annotated[
        dict[str, Annotated[list[_Number], Field(min_length=1)]],
        _expecting(f"equally many numbers for each of {CURVE_NAMES}", _are_curves),
    ]
    | None,
    "outcome": _Outcome | None,
}


@dataclass(frozen=True)
class TaskEntry:
    """One request to forget and its result. All values are converted to plain JSON types and checked.

    Args:
        name (`str`):
            `"task_001"` and so on, in order.
        request (`dict`):
            The request, see [`ForgetRequest.to_dict`].
        classes (`list[int]` or `None`):
            Ids of the forgotten classes; `None` if they are withheld.
        started_at (`str`):
            Start of the training: ISO 8601 with an offset from UTC. Stored in UTC.
        finished_at (`str`):
            End of the task, in the same format.
        class_names (`list[str]`, *optional*):
            One name for each of `classes`.
        missing_classes (`list[int]`, *optional*):
            Ids of classes that were kept without their training data.
        sizes (`dict`, *optional*):
            Number of training samples, `forget` and `retain`, without those held out by `validation_fraction`; and of
            optimizer `steps`.
        settings (`dict`, *optional*):
            Adapter configuration, training arguments and data, see [`Recipe.settings`].
        versions (`dict`, *optional*):
            Library versions, see [`library_versions`].
        files (`dict[str, str]`, *optional*):
            Path relative to the ledger's folder, with `/` → SHA-256 (hexadecimal).
        groups (`dict`, *optional*):
            `total` (number), `active` and `zero` (names), `zero_group_ratio`, and `norms`: name of the group → ‖g‖,
            exactly 0.0 for a zero group. A group that changes nothing is zero, see [`LoraGroups.changed`]. If weights
            of the model trained, each tensor is a group, and its norm is that of its change.
        scores (`dict`, *optional*):
            `before`, `after` and `base` (the model before any task), each a dict of finite numbers.
        status (`str`, *optional*, defaults to `"done"`):
            `"done"` or `"revoked"`.
        revocation (`dict`, *optional*):
            `revoked_at`, `reason`, `scores_before`, `scores_after`, ...: given if and only if the task is revoked.
        curves (`dict[str, list[float]]`, *optional*):
            Course of the training, see [`training_curves`]; `None` if nothing was logged.
        outcome (`dict`, *optional*):
            Whether the classes are forgotten, see [`outcome_of_task`]: `forgotten` (`None` without samples to measure
            on), `target`, `known_before`, and `earlier`. Older ledgers lack it.
        cost (`dict`, *optional*):
            Of the training: numbers that train (`trainable`), `seconds` of wall-clock time over all attempts, and
            `peak_bytes`, the most memory: allocated on the accelerator, or resident in the process on a CPU. Older
            ledgers lack it.
        method_files (`dict[str, str]`, *optional*):
            Files that the method keeps for later tasks ([`Method.leave`]), as `files`. They are never published.
        extra (`dict`, *optional*):
            Keys that this version does not know. They are kept unchanged.

    Raises:
        LedgerError: If a field has a wrong type or value. The error names it.
    """

    name: str
    request: dict[str, Any]
    classes: list[int] | None
    started_at: str
    finished_at: str
    class_names: list[str] | None = None
    missing_classes: list[int] | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    status: Literal["done", "revoked"] = "done"
    revocation: dict[str, Any] | None = None
    curves: dict[str, Any] | None = None
    outcome: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    method_files: dict[str, str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked("a task's name", self.name, TaskName, fix="Correct it.", error=InvalidLedgerError)
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, plain_json(getattr(self, item.name), f"{self.name}.{item.name}"))
        for key, kind in _KINDS.items():
            checked(f"{self.name}.{key}", getattr(self, key), kind, fix="Correct it.", error=InvalidLedgerError)
        for key in ("started_at", "finished_at"):
            try:
                object.__setattr__(self, key, parse_utc(getattr(self, key), f"{self.name}.{key}"))
            except InvalidInputError as error:
                raise as_ledger_error(error) from None
        unknown = not self.extra.keys() & self.__dict__.keys() - {"extra"}
        self._expect("extra", unknown, "only keys that are not fields of an entry")
        ids, names = self.classes, self.class_names
        fits = names is None or ids is None or len(names) == len(ids)
        self._expect("class_names", fits, "a list with one name for each of `classes`")
        self._expect(
            "missing_classes",
            not {*(self.missing_classes or ())} & {*(ids or ())},
            "ids of which none is in `classes`",
        )
        fits = (self.revocation is not None) == (self.status == "revoked")
        self._expect("revocation", fits, "a dict for a revoked task, nothing for any other")

    def _expect(self, key: str, fits: bool, expected: str) -> None:
        if not fits:
            raise InvalidLedgerError(f"{self.name}.{key}", getattr(self, key), expected, "Correct it.")

    @property
    def number(self) -> int:
        """Number in the name: 7 for `"task_007"`."""
        return int(self.name.removeprefix("task_"))

    @property
    def leaves_weights(self) -> bool:
        """Whether the task left new values of the model's own weights, instead of an adapter."""
        return f"{TASKS_FOLDER}/{self.name}/{WEIGHT_DIFFERENCE}" in self.files

    @property
    def forgotten(self) -> bool | None:
        """Whether the classes were forgotten right after the task; `None` if unknown.

        A later task may have brought them back, see [`task_states`].
        """
        return (self.outcome or {}).get("forgotten")

    @property
    def target(self) -> float | None:
        """Largest accuracy (or average precision) on the classes that counts as forgotten, from 0 to 1."""
        return (self.outcome or {}).get("target")

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry in plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        absent = {name for name in _OPTIONAL if data[name] is None}
        return {**self.extra, **{name: value for name, value in data.items() if name not in absent}}

    @classmethod
    def from_dict(cls, data: Any) -> TaskEntry:
        """Rebuilds an entry from the result of [`~TaskEntry.to_dict`].

        Args:
            data (`dict[str, Any]`):
                The fields by name. Unknown keys go to `extra`.

        Raises:
            LedgerError: If a field is missing or invalid.
        """
        fix = "Fetch a clean copy of the ledger."
        checked("a task", data, _Object, fix=fix, error=InvalidLedgerError)
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        if missing := sorted(fields - _OPTIONAL - set(data)):
            raise InvalidLedgerError(f"the task {data.get('name')!r}", list(data), f"also the keys {missing}", fix)
        known = {key: value for key, value in data.items() if key in fields}
        return cls(**known, extra={key: value for key, value in data.items() if key not in fields})


def listed_files(entry: TaskEntry, of: str) -> list[str]:
    """Returns the files that the ledger lists for a task, after checking their names.

    Args:
        entry ([`TaskEntry`]):
            The task.
        of (`str`):
            Folder or repository of the ledger, for the error.

    Raises:
        InvalidLedgerError: If it lists a file that does not belong to a task.
    """
    known = {f"{TASKS_FOLDER}/{entry.name}/{name}" for name in _TASK_FILES}
    if odd := sorted(set(entry.files) - known):
        fix = f"The ledger of {of!r} lists {odd} under {entry.name}; only these belong to a task. Do not use it."
        raise InvalidLedgerError(f"{entry.name}.files", odd, f"only {sorted(known)}", fix)
    return sorted(entry.files)


def empty_selection_reason(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> str:
    """Explains why [`select_tasks`] returns no task, and gives the fix. The arguments are the same."""
    if not entries:
        return "it has no task. Carry out a request first."
    if all(entry.status == "revoked" for entry in entries):
        return f"all of its {len(entries)} task(s) are revoked. Carry a request out again first."
    return f"tasks is {wanted!r}. Choose at least one."


def select_tasks(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> list[TaskEntry]:
    """Selects tasks in effect, in the order of the ledger.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks, including the revoked ones.
        wanted (`int`, `Sequence[str]` or `None`):
            How many of the tasks in effect, from the first on; or their names; or `None` for all.

    Raises:
        LedgerError: If there are fewer tasks, a name is unknown, or a task is revoked.
    """
    active = [entry for entry in entries if entry.status != "revoked"]
    there = f"The tasks in effect are: {', '.join(entry.name for entry in active) or 'none'}."
    if wanted is None:
        return active
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 0 <= wanted <= len(active):
            raise InvalidLedgerError("tasks", wanted, f"a number from 0 to {len(active)}", there)
        return active[:wanted]
    if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Sequence):
        raise InvalidLedgerError("tasks", wanted, "None, a number or a list of names", there)
    status = {entry.name: entry.status for entry in entries}
    for name in wanted:
        if not isinstance(name, str) or name not in status:
            raise InvalidLedgerError("tasks", name, "the name of a task", there)
        if status[name] == "revoked":
            raise InvalidLedgerError("tasks", name, "a task in effect; this one was revoked", there)
    if len(set(wanted)) < len(wanted):
        raise InvalidLedgerError("tasks", list(wanted), "each name once", there)
    return [entry for entry in active if entry.name in wanted]
