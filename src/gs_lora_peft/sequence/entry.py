"""The entry that records what came of one request to forget."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import InvalidInputError
from ..storage import relative_path_problem
from .curves import CURVE_NAMES, curve_names
from .plain import InvalidLedgerError, LedgerError, is_names, plain_json
from .request import parse_utc

_TASK_NAME = re.compile(r"task_((?!000)\d{3}|[1-9]\d{3,8})", re.ASCII)
_OPTIONAL = {"missing_classes", "revocation", "curves", "outcome"}  # left out of the file where they are None


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
        missing_classes (`list[int]`, *optional*): Ids of classes that were kept without any of their training data;
            absent where there were none.
        sizes (`dict`): Number of samples that were trained on: `forget` and `retain`, without those held out by
            `validation_fraction`; and of optimizer `steps`.
        settings (`dict`): What the run was told: training arguments and adapter configuration.
        versions (`dict`): Library versions, see [`library_versions`].
        files (`dict[str, str]`): SHA-256 (hexadecimal) by path relative to the ledger's folder, with `/`.
        groups (`dict`): `total`, `active` and `zero` (names), `zero_group_ratio`, and `norms`: ‖g‖ by name of the
            group, exactly 0.0 where it is zero. A group that changes nothing is zero, see [`LoraGroups.changed`].
        scores (`dict`): `before`, `after` and `base` (the model before any task), each a dict of numbers.
            NaN and infinities are refused.
        status (`str`, defaults to `"done"`): Or `"revoked"`.
        revocation (`dict`, *optional*): `revoked_at`, `reason`, `scores_before`, `scores_after`, ...; present if and
            only if the task is revoked.
        curves (`dict[str, list[float]]`, *optional*): How the training went, see [`training_curves`]; absent where
            nothing was logged.
        outcome (`dict`, *optional*): Whether the classes are forgotten, see [`outcome_of_task`]: `forgotten` (`None`
            where there was nothing to measure it on), `target`, `known_before`, and `earlier`; absent in ledgers made
            before it was recorded.
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
        if not isinstance(self.name, str) or not _TASK_NAME.fullmatch(self.name):
            raise InvalidLedgerError("a task's name", self.name, "'task_001', 'task_002', ...", "Correct it.")
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, plain_json(getattr(self, item.name), f"{self.name}.{item.name}"))
        for key in ("request", "sizes", "settings", "versions", "files", "groups", "scores", "extra"):
            self._expect(key, isinstance(getattr(self, key), dict), "a dict")
        for key in ("started_at", "finished_at"):
            try:
                object.__setattr__(self, key, parse_utc(getattr(self, key), f"{self.name}.{key}"))
            except InvalidInputError as error:
                raise InvalidLedgerError(error.name, error.value, error.expected, error.fix) from None
        self._expect(
            "extra",
            not self.extra.keys() & self.__dict__.keys() - {"extra"},
            "only keys that are not fields of an entry",
        )
        ids, names = self.classes, self.class_names
        self._expect("classes", ids is None or _is_ids(ids), "a list of different class ids from 0")
        fits = names is None or (is_names(names) and (ids is None or len(names) == len(ids)))
        self._expect("class_names", fits, "a list with one name for each of `classes`")
        missing = self.missing_classes
        fits = missing is None or (_is_ids(missing) and not set(missing) & set(ids or ()))
        self._expect("missing_classes", fits, "a list of different class ids from 0, none of which is in `classes`")
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
        norms = self.groups.get("norms", {})
        self._expect("groups", isinstance(norms, dict) and _are_numbers(norms.values()), "numbers under 'norms'")
        self._expect(
            "curves",
            self.curves is None or _are_curves(self.curves),
            f"equally many numbers for each of {CURVE_NAMES}",
        )
        fits = self.outcome is None or _is_outcome(self.outcome)
        self._expect("outcome", fits, "a dict with `forgotten` (true, false or null) and `target` (a number or null)")
        for key in ("before", "after", "base"):
            self._expect("scores", isinstance(self.scores.get(key, {}), dict), f"a dict under {key!r}")

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
        if not isinstance(data, dict):
            raise InvalidLedgerError("a task", data, "an object", "Fetch a clean copy of the ledger.")
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        missing = sorted(fields - _OPTIONAL - set(data))
        if missing:
            raise LedgerError(f"the task {data.get('name')!r} lacks {missing}. Fetch a clean copy of the ledger.")
        known = {key: value for key, value in data.items() if key in fields}
        return cls(**known, extra={key: value for key, value in data.items() if key not in fields})


def _is_ids(value: Any) -> bool:
    fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return fits and 0 < len(value) == len(set(value))


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _are_curves(value: Any) -> bool:
    fits = isinstance(value, dict) and all(isinstance(c, list) and c and _are_numbers(c) for c in value.values())
    return fits and curve_names(value) is not None and len({len(curve) for curve in value.values()}) == 1


def _is_outcome(value: Any) -> bool:
    def is_verdict(item: Any) -> bool:
        return item is None or isinstance(item, bool)

    def is_score(item: Any) -> bool:
        return item is None or (type(item) in (int, float) and 0 <= item <= 1)

    if not isinstance(value, dict) or not isinstance(value.get("earlier", {}), dict):
        return False
    earlier = value.get("earlier", {}).values()
    return (
        is_verdict(value.get("forgotten"))
        and is_verdict(value.get("known_before"))
        and is_score(value.get("target"))
        and all(isinstance(item, dict) and is_score(item.get("score")) for item in earlier)
        and all(is_verdict(item.get("forgotten")) for item in earlier)
    )
