"""The entry that records what came of one request, and how entries are selected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, Strict

from ..checking import ClassIds, Flag, checked
from ..errors import InvalidInputError
from ..io import relative_path_problem
from .files import TASKS_FOLDER, TRAINING_CONFIG
from .request import parse_utc
from .schema import InvalidLedgerError, Names, as_ledger_error, plain_json

if TYPE_CHECKING:
    pass

CURVE_NAMES = ("epoch", "retain_loss", "forget_loss", "retain_accuracy", "forget_accuracy", "active_groups")


# How much is known in the course of a training: of a classifier the first, of a detector the second.
KNOWN_BY = ("accuracy", "confidence")


def curve_names(names: Collection[str]) -> tuple[str, ...] | None:
    """The curves that a training with logs of these names has; `None` where they are not complete."""
    for known_by in KNOWN_BY:
        wanted = tuple(name.replace("accuracy", known_by) for name in CURVE_NAMES)
        if set(wanted) <= set(names):
            return wanted
    return None


_OPTIONAL = {"missing_classes", "revocation", "curves", "outcome"}  # left out of the file where they are None


def _expecting(expected: str, fits: Callable[[Any], bool]) -> AfterValidator:
    """A check for pydantic, and what it expects."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_curves(curves: dict[str, list[Any]]) -> bool:
    return curve_names(curves) is not None and len(set(map(len, curves.values()))) == 1


# What the fields hold. The values have been made plain JSON before; they are compared with these, and not changed.
_TaskName = Annotated[
    str,
    Strict(),
    Field(pattern=r"^task_([0-9]{2}[1-9]|[0-9][1-9]0|[1-9]00|[1-9][0-9]{3,8})$", description="'task_001', ..."),
]


_Object = Annotated[dict[str, Any], Field(description="a dict")]


_Number = Annotated[Any, _expecting("a number", _is_number)]


_Score = Annotated[
    Any,
    _expecting("a number from 0 to 1, or None", lambda x: x is None or (_is_number(x) and 0 <= x <= 1)),
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


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("request", "sizes", "settings", "versions", "extra"), _Object),
    "classes": ClassIds | None,
    "class_names": Names | None,
    "missing_classes": ClassIds | None,
    "files": dict[
        Annotated[str, _expecting("a path inside the folder", lambda x: not relative_path_problem(x))],
        Annotated[str, Strict(), Field(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits")],
    ],
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
    """One request to forget and what came of it. Everything is reduced to plain JSON types and checked.

    Args:
        name (`str`):
            `"task_001"` and so on, in order.
        request (`dict`):
            The request as it was made, see [`ForgetRequest.to_dict`].
        classes (`list[int]` or `None`):
            Ids of the classes forgotten; `None` where they are withheld.
        started_at (`str`):
            ISO 8601 with an offset from UTC; stored in UTC.
        finished_at (`str`):
            The same for the end.
        class_names (`list[str]`, *optional*):
            One name for each of `classes`.
        missing_classes (`list[int]`, *optional*):
            Ids of classes that were kept without any of their training data; absent where there were none.
        sizes (`dict`):
            Number of samples that were trained on: `forget` and `retain`, without those held out by
            `validation_fraction`; and of optimizer `steps`.
        settings (`dict`):
            What the run was told: training arguments and adapter configuration.
        versions (`dict`):
            Library versions, see [`library_versions`].
        files (`dict[str, str]`):
            SHA-256 (hexadecimal) by path relative to the ledger's folder, with `/`.
        groups (`dict`):
            `total`, `active` and `zero` (names), `zero_group_ratio`, and `norms`: ‖g‖ by name of the group, exactly
            0.0 where it is zero. A group that changes nothing is zero, see [`LoraGroups.changed`].
        scores (`dict`):
            `before`, `after` and `base` (the model before any task), each a dict of numbers. NaN and infinities are
            refused.
        status (`str`, defaults to `"done"`):
            Or `"revoked"`.
        revocation (`dict`, *optional*):
            `revoked_at`, `reason`, `scores_before`, `scores_after`, ...; present if and only if the task is revoked.
        curves (`dict[str, list[float]]`, *optional*):
            How the training went, see [`training_curves`]; absent where nothing was logged.
        outcome (`dict`, *optional*):
            Whether the classes are forgotten, see [`outcome_of_task`]: `forgotten` (`None` where there was nothing to
            measure it on), `target`, `known_before`, and `earlier`; absent in ledgers made before it was recorded.
        extra (`dict`):
            Keys that this version does not know; they are kept as they are.

    Raises:
        LedgerError: A field has a wrong type or value; the message names it.
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
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked("a task's name", self.name, _TaskName, fix="Correct it.", error=InvalidLedgerError)
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
        """The number in the name: 7 for `"task_007"`."""
        return int(self.name.removeprefix("task_"))

    @property
    def forgotten(self) -> bool | None:
        """Whether the classes were forgotten when the request was carried out; `None` where that is not known.

        A later task may have brought them back, see [`task_states`].
        """
        return (self.outcome or {}).get("forgotten")

    @property
    def target(self) -> float | None:
        """The largest accuracy (or average precision) on the classes that counts as forgotten, from 0 to 1."""
        return (self.outcome or {}).get("target")

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        absent = {name for name in _OPTIONAL if data[name] is None}
        return {**self.extra, **{name: value for name, value in data.items() if name not in absent}}

    @classmethod
    def from_dict(cls, data: Any) -> TaskEntry:
        """The entry that [`~TaskEntry.to_dict`] gave; LedgerError if something is missing or wrong."""
        fix = "Fetch a clean copy of the ledger."
        checked("a task", data, _Object, fix=fix, error=InvalidLedgerError)
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        if missing := sorted(fields - _OPTIONAL - set(data)):
            raise InvalidLedgerError(f"the task {data.get('name')!r}", list(data), f"also the keys {missing}", fix)
        known = {key: value for key, value in data.items() if key in fields}
        return cls(**known, extra={key: value for key, value in data.items() if key not in fields})


_NAMES = ("adapter_config.json", "adapter_model.safetensors", TRAINING_CONFIG)  # PEFT's, whose import takes seconds


def listed_files(entry: TaskEntry, of: str) -> list[str]:
    """The files that the ledger lists for a task, before any of them is downloaded or published.

    Args:
        entry ([`TaskEntry`]):
            The task.
        of (`str`):
            Whose ledger it is, for the error.

    Raises:
        InvalidLedgerError: It lists a file that a task does not have.
    """
    known = {f"{TASKS_FOLDER}/{entry.name}/{name}" for name in _NAMES}
    if odd := sorted(set(entry.files) - known):
        fix = f"The ledger of {of!r} lists {odd} under {entry.name}; only these belong to a task. Do not use it."
        raise InvalidLedgerError(f"{entry.name}.files", odd, f"only {sorted(known)}", fix)
    return sorted(entry.files)


def why_none(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> str:
    """Says why [`select_tasks`] gives no task, and what to do."""
    if not entries:
        return "it has no task. Carry out a request first."
    if all(entry.status == "revoked" for entry in entries):
        return f"all of its {len(entries)} task(s) are revoked. Carry a request out again first."
    return f"tasks is {wanted!r}. Choose at least one."


def select_tasks(entries: Sequence[TaskEntry], wanted: int | Sequence[str] | None) -> list[TaskEntry]:
    """Picks tasks in effect, always in the order in which they were carried out.

    Args:
        entries (`Sequence[TaskEntry]`):
            All tasks, the revoked ones too.
        wanted (`int`, `Sequence[str]` or `None`):
            The first so many of the tasks in effect, or their names; or all.

    Raises:
        LedgerError: Fewer tasks, an unknown name, a revoked task, or something else altogether.
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
