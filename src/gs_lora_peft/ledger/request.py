"""Requests to forget: which classes, when and why they were made, and how a command line writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..checking import OptionalText, SomeClassRefs, Text, checked
from ..errors import InvalidInputError, PrivateInputError


def utc_now() -> str:
    """Returns the current time as ISO 8601 in UTC, to the second: `"2025-01-31T12:00:00Z"`."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def parse_utc(text: Any, name: str = "requested_at") -> str:
    """Checks an ISO 8601 time and returns it in UTC.

    Args:
        text (`str`):
            A time with an offset from UTC, e.g. `"2025-01-31T12:00:00Z"` or `"2025-01-31T13:00:00+01:00"`.
        name (`str`, *optional*, defaults to `"requested_at"`):
            Name of the value, for the error.

    Returns:
        `str`: The time in UTC, e.g. `"2025-01-31T12:00:00Z"`.

    Raises:
        InvalidInputError: If it is not an ISO 8601 time, or has no offset (local time and UTC look the same).
    """
    expected = "an ISO 8601 time with its offset from UTC, e.g. '2025-01-31T12:00:00Z'"
    if not isinstance(text, str):
        raise InvalidInputError(name, text, expected, "Pass a string, e.g. `moment.isoformat()`.")
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise InvalidInputError(name, text, expected, "Correct it, or leave it out to use the current time.") from None
    raise InvalidInputError(name, text, expected, "Add 'Z' for UTC, or the local offset.")


@dataclass(frozen=True)
class ForgetRequest:
    """A request to forget one or more classes.

    Args:
        classes (`Sequence[str | int]`):
            Names or ids of the classes to forget, at least one, without duplicates. Stored as a tuple.
        note (`str`, *optional*):
            Free text, for instance the reason. It is written to the ledger.
        requested_at (`str`, *optional*, defaults to the current time):
            When the request was made: ISO 8601 with an offset from UTC. Stored in UTC.
        request_id (`str`, *optional*):
            Your own reference number for the request.

    Raises:
        InvalidInputError: If a class is blank, given twice, negative or neither a name nor an id; if the time has no
            offset; or if UTF-8 cannot encode a text.

    Example:
        ```py
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
        # Written by hand: it accepts more (any ordered collection, no time) than the fields store.
        set_field = object.__setattr__
        set_field(self, "classes", tuple(checked("classes", classes, SomeClassRefs, error=PrivateInputError)))
        set_field(self, "requested_at", utc_now() if requested_at is None else parse_utc(requested_at))
        for name, value in (("note", note), ("request_id", request_id)):
            set_field(self, name, checked(name, value, OptionalText, fix="Pass a string or leave it out."))

    def to_dict(self) -> dict[str, Any]:
        """Returns the request in plain JSON types, without the fields that are `None`."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs if v is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForgetRequest:
        """Rebuilds a request from the result of [`~ForgetRequest.to_dict`].

        Args:
            data (`Mapping[str, Any]`):
                The fields of the request by name.

        Raises:
            InvalidInputError: If `data` is not a mapping, lacks `classes`, or has unknown keys.
        """
        if not isinstance(data, Mapping) or "classes" not in data:
            raise PrivateInputError("request", data, "a mapping with the key 'classes'", "Add the classes.")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in data if key not in known]
        if unknown:
            raise InvalidInputError("keys of the request", unknown, f"only {known}", "Remove or rename them.")
        return cls(**data)


def parse_requests(text: str) -> list[ForgetRequest]:
    """Reads a sequence of requests from text: `;` separates requests, `,` separates the classes of one request.

    Use the id of a class whose name contains a comma or a semicolon.

    Args:
        text (`str`):
            E.g. `"tench,cassette player;school bus"` or `"3;7;0,1"`.

    Returns:
        `list[ForgetRequest]`: The requests, in order.

    Raises:
        ValueError: If the text, a request or a class is empty. The error shows which.

    Example:
        ```py
        >>> [list(request.classes) for request in parse_requests("tench,cassette player;school bus")]
        [['tench', 'cassette player'], ['school bus']]
        ```
    """
    requests = []
    checked("text", text, Text, fix="Write the classes as 'tench,cassette player;school bus'.")
    for number, task in enumerate(text.split(";"), start=1):
        classes = _split(task)
        if not all(classes):
            fix = "Separate tasks with ';' and classes with ',', e.g. 'tench,cassette player;school bus'."
            raise PrivateInputError(f"task {number}", task, "class names that are not empty", fix)
        requests.append(ForgetRequest(classes))
    return requests


def parse_classes(text: str) -> list[str]:
    """Reads a list of classes from text: `,` separates them.

    Use the id of a class whose name contains a comma or a semicolon.

    Args:
        text (`str`):
            E.g. `"tench,cassette player"` or `"3,7"`.

    Returns:
        `list[str]`: Names, or ids as they are written, in order.

    Raises:
        ValueError: If the text or a class is empty, or if there is a `;`, which separates requests, not classes.

    Example:
        ```py
        >>> parse_classes("tench,cassette player")
        ['tench', 'cassette player']
        ```
    """
    checked("text", text, Text, fix="Write the classes as 'tench,cassette player'.")
    if ";" in text:
        raise PrivateInputError("text", text, "a list of classes without ';'", "Separate them with ','.")
    classes = _split(text)
    if not all(classes):
        fix = "Separate classes with ',', e.g. 'tench,cassette player'."
        raise PrivateInputError("text", text, "class names that are not empty", fix)
    return classes


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
