"""A request to forget (which classes, asked when, and why) and the entry that records what came of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, Literal

from .storage import relative_path_problem


def utc_now() -> str:
    """The present moment as ISO 8601 in UTC, to the second: `"2025-01-31T12:00:00Z"`."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def parse_utc(text: Any, name: str = "requested_at") -> str:
    """Checks an ISO 8601 time and returns it in UTC.

    Args:
        text (`str`): A time with an offset from UTC, as `"2025-01-31T12:00:00Z"` or `"2025-01-31T13:00:00+01:00"`.
        name (`str`, *optional*, defaults to `"requested_at"`): What the error calls it.

    Raises:
        ValueError: It is no such time, or its offset is missing (local time cannot be told from UTC).
    """
    problem = f"{name} is {text!r}; expected an ISO 8601 time with its offset from UTC, as '2025-01-31T12:00:00Z'."
    if not isinstance(text, str):
        raise ValueError(f"{problem} Pass a string, for a datetime `moment.isoformat()`.")
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise ValueError(f"{problem} Correct it, or leave it out for the present moment.") from None
    raise ValueError(f"{problem} Add 'Z' for UTC, or the offset of the place.")


@dataclass(frozen=True)
class ForgetRequest:
    """What somebody asks a model to forget.

    Args:
        classes (`Sequence[str | int]`):
            Names or ids of the classes to forget, at least one, none twice. Stored as a tuple.
        note (`str`, *optional*):
            Free text, for instance the reason. It is written to the ledger.
        requested_at (`str`, *optional*, defaults to the present moment):
            When it was asked: ISO 8601 with an offset from UTC; stored in UTC.
        request_id (`str`, *optional*):
            The number of the request in the books of whoever asked.

    Raises:
        ValueError: A class is empty, given twice, negative or neither a name nor an id; a time without an offset.

    Example:

    ```python
    >>> request = ForgetRequest(["tench", "cassette player"], note="licence withdrawn")
    >>> request.classes
    ('tench', 'cassette player')
    ```
    """

    classes: tuple[str | int, ...]
    note: str | None = field(default=None, kw_only=True)
    requested_at: str | None = field(default=None, kw_only=True)
    request_id: str | None = field(default=None, kw_only=True)

    def __init__(
        self,
        classes: Iterable[str | int],
        *,
        note: str | None = None,
        requested_at: str | None = None,
        request_id: str | None = None,
    ) -> None:
        # Written out, because what is accepted (any ordered collection, no time) is wider than what is stored.
        set_field = object.__setattr__
        set_field(self, "classes", _checked_classes(classes))
        set_field(self, "requested_at", utc_now() if requested_at is None else parse_utc(requested_at))
        for name, value in (("note", note), ("request_id", request_id)):
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} is {value!r}; expected text. Pass a string or leave it out.")
            set_field(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON types; what was not given is left out."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForgetRequest:
        """The request that [`~ForgetRequest.to_dict`] gave.

        Raises:
            ValueError: `data` is no mapping, lacks `classes`, or has keys that a request does not have.
        """
        if not isinstance(data, Mapping) or "classes" not in data:
            raise ValueError(f"a request is {data!r}; expected a mapping with the key 'classes'. Add the classes.")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in data if key not in known]
        if unknown:
            raise ValueError(f"a request has the keys {unknown}; expected only {known}. Remove or rename them.")
        return cls(**data)


def _checked_classes(classes: Any) -> tuple[str | int, ...]:
    if isinstance(classes, (str, bytes, Integral)):
        raise ValueError(f"classes is {classes!r}; expected a list of class names or ids. Write [{classes!r}].")
    if isinstance(classes, (Mapping, Set)) or not isinstance(classes, Iterable):
        raise ValueError(f"classes is {classes!r}; expected an ordered collection of class names or ids. Pass a list.")
    checked: list[str | int] = []
    for item in classes:
        if isinstance(item, Integral) and not isinstance(item, bool):
            item = int(item)
            problem = "a class id cannot be negative" if item < 0 else None
        elif isinstance(item, str):
            problem = "a class name cannot be blank" if not item.strip() else None
        else:
            problem = f"a {type(item).__name__} is neither"
        if problem is None and item in checked:
            problem = "it is given twice"
        if problem is not None:
            raise ValueError(
                f"classes holds {item!r}: {problem}; expected class names (str) or class ids (int from 0), each once. "
                "Correct or remove it."
            )
        checked.append(item)
    if not checked:
        raise ValueError("classes is empty; expected at least one class name or id. Name what is to be forgotten.")
    return tuple(checked)


_TASK_NAME = re.compile(r"task_((?!000)\d{3}|[1-9]\d{3,8})", re.ASCII)


class LedgerError(ValueError):
    """The ledger, or something it vouches for, is not what it should be."""


@dataclass(frozen=True)
class TaskEntry:
    """One request to forget and what came of it. Everything is reduced to plain JSON types and checked.

    Args:
        name (`str`): `"task_001"` and so on, in order.
        request (`dict`): The request as it was made, see [`ForgetRequest.to_dict`].
        classes (`list[int]` or `None`): Ids of the classes forgotten; `None` where they are withheld.
        started_at (`str`): ISO 8601 with an offset from UTC; stored in UTC.
        finished_at (`str`): The same for the end.
        class_names (`list[str]`, *optional*): One name for each of `classes`.
        sizes (`dict`): Number of samples by split: `forget`, `retain`, ...
        settings (`dict`): What the run was told: training arguments and adapter configuration.
        versions (`dict`): Library versions, see [`library_versions`].
        files (`dict[str, str]`): SHA-256 (hexadecimal) by path relative to the ledger's folder, with `/`.
        groups (`dict`): `total`, `active` and `zero` (names) and `zero_group_ratio`.
        scores (`dict`): `before` and `after`, each a dict of numbers. NaN and infinities are refused.
        status (`str`, defaults to `"done"`): Or `"revoked"`.
        revocation (`dict`, *optional*): `revoked_at`, `reason`, `scores_before`, `scores_after`, ...; present if and
            only if the task is revoked.
        extra (`dict`): Keys that this version does not know; they are kept as they are.

    Raises:
        LedgerError: A field has a wrong type or value; the message names it.
    """

    name: str
    request: dict[str, Any]
    classes: list[int] | None
    started_at: str
    finished_at: str
    class_names: list[str] | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    status: Literal["done", "revoked"] = "done"
    revocation: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _TASK_NAME.fullmatch(self.name):
            raise LedgerError(f"a task's name is {self.name!r}; expected 'task_001', 'task_002', ... Correct it.")
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, plain_json(getattr(self, item.name), f"{self.name}.{item.name}"))
        for key in ("request", "sizes", "settings", "versions", "files", "groups", "scores", "extra"):
            self._expect(key, isinstance(getattr(self, key), dict), "a dict")
        for key in ("started_at", "finished_at"):
            try:
                object.__setattr__(self, key, parse_utc(getattr(self, key), f"{self.name}.{key}"))
            except ValueError as error:
                raise LedgerError(str(error)) from None
        self._expect(
            "extra",
            not self.extra.keys() & self.__dict__.keys() - {"extra"},
            "only keys that are no fields of an entry",
        )
        ids, names = self.classes, self.class_names
        self._expect("classes", ids is None or _is_ids(ids), "a list of different class ids from 0")
        fits = names is None or (is_names(names) and (ids is None or len(names) == len(ids)))
        self._expect("class_names", fits, "a list with one name for each of `classes`")
        self._expect("status", self.status in ("done", "revoked"), "'done' or 'revoked'")
        fits = isinstance(self.revocation, dict) if self.status == "revoked" else self.revocation is None
        self._expect("revocation", fits, "a dict for a revoked task, nothing for any other")
        for path, digest in self.files.items():
            problem = relative_path_problem(path)
            self._expect("files", problem is None, f"relative paths inside the folder ({path!r}: {problem})")
            fits = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
            self._expect("files", fits, f"64 hexadecimal digits for {path!r}")
        for key in ("active", "zero"):
            self._expect("groups", is_names(self.groups.get(key, [])), f"a list of names under {key!r}")
        for key in ("before", "after"):
            self._expect("scores", isinstance(self.scores.get(key, {}), dict), f"a dict under {key!r}")

    def _expect(self, key: str, fits: bool, expected: str) -> None:
        if not fits:
            raise LedgerError(f"{self.name}.{key} is {short(getattr(self, key))}; expected {expected}. Correct it.")

    @property
    def number(self) -> int:
        """The number in the name: 7 for `"task_007"`."""
        return int(self.name.removeprefix("task_"))

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        if self.revocation is None:
            del data["revocation"]
        return {**self.extra, **data}

    @classmethod
    def from_dict(cls, data: Any) -> TaskEntry:
        """The entry that [`~TaskEntry.to_dict`] gave; LedgerError if something is missing or wrong."""
        if not isinstance(data, dict):
            raise LedgerError(f"a task is {short(data)}; expected an object. Fetch a clean copy of the ledger.")
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        missing = sorted(fields - {"revocation"} - set(data))
        if missing:
            raise LedgerError(f"the task {data.get('name')!r} lacks {missing}. Fetch a clean copy of the ledger.")
        known = {key: value for key, value in data.items() if key in fields}
        return cls(**known, extra={key: value for key, value in data.items() if key not in fields})


def plain_json(value: Any, where: str) -> Any:
    """A copy of `value` in plain JSON types; LedgerError, with the place, for what JSON cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise LedgerError(f"{where} is {value!r}; expected text that UTF-8 can encode. Correct it.")
        return str.__str__(value)  # the bare text of an enum member
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise LedgerError(f"{where} is {float(value)}; expected a finite number. Leave it out or find its cause.")
        return float(value)
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise LedgerError(f"{where} has the key {strange[0]!r}; expected only text as keys. Convert it.")
        return {plain_json(key, where): plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise LedgerError(
        f"{where} is a {type(value).__name__}; expected text, numbers, True, False, None, or lists and dicts of them. "
        "Convert it first."
    )


def is_names(value: Any) -> bool:
    """Whether `value` is a list of text."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_ids(value: Any) -> bool:
    fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return fits and 0 < len(value) == len(set(value))


def short(value: Any) -> str:
    """A `repr` that does not flood a message."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
