import dataclasses
import json
from datetime import datetime

import numpy as np
import pytest
from errors import refused
from hypothesis import given, strategies as st

from gs_lora_peft.errors import InvalidInputError
from gs_lora_peft.ledger import ForgetRequest, parse_classes, parse_requests, parse_utc


def nested():
    """A list in a list in a list …, deeper than Python recurses."""
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def test_what_was_given_is_kept():
    request = ForgetRequest(["tench", 3], note="why", requested_at="2025-01-31T13:00:00+01:00", request_id="A-7")
    assert request.classes == ("tench", 3)
    assert request.to_dict() == {
        "classes": ["tench", 3],
        "note": "why",
        "requested_at": "2025-01-31T12:00:00Z",
        "request_id": "A-7",
    }


def test_the_time_defaults_to_now_in_utc():
    request = ForgetRequest([0])
    assert request.requested_at.endswith("Z")
    age = datetime.now().astimezone() - datetime.fromisoformat(request.requested_at)
    assert 0 <= age.total_seconds() < 10
    assert set(request.to_dict()) == {"classes", "requested_at"}


def test_it_is_frozen_and_compares_by_value():
    request = ForgetRequest([0], requested_at="2025-01-31T12:00:00Z")
    assert request == ForgetRequest((0,), requested_at="2025-01-31T12:00:00Z")
    assert len({request, request}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.note = "x"


def test_numpy_ids_and_ranges_become_plain_integers():
    request = ForgetRequest(np.array([4, 2]))
    assert request.classes == (4, 2)
    assert all(type(c) is int for c in request.classes)
    assert ForgetRequest(range(2)).classes == (0, 1)
    assert json.dumps(request.to_dict())


@pytest.mark.parametrize(
    ("classes", "fix"),
    [
        ([], ""),
        ("tench", "Write it in a list."),
        (7, "Write [7]."),
        (True, "Write [True]."),
        (None, "Pass a list, which has an order."),
        ({"a", "b"}, "Pass a list, which has an order."),
        ({"a": 1}, "Pass a list, which has an order."),
        (["a", "b", "a"], "Item 2 repeats an earlier one: remove it."),
        ([1, 2, 1], "Item 2 repeats an earlier one: remove it."),
    ],
)
def test_what_is_no_list_of_classes_is_refused(classes, fix):
    """The error has the value and says how to write it."""
    with pytest.raises(InvalidInputError) as caught:
        ForgetRequest(classes)
    assert (caught.value.name, caught.value.value, caught.value.fix) == ("classes", classes, fix)


@pytest.mark.parametrize(
    "item", [True, np.True_, 1.0, np.float32(1), None, ["a"], b"a", -1, "", "  ", "\ud800", float("nan"), nested()]
)
def test_what_is_no_class_is_refused(item):
    """A name is text that can be written down, an id a whole number from 0 up; the error says at which place."""
    with pytest.raises(InvalidInputError) as caught:
        ForgetRequest(["tench", item])
    assert caught.value.name == "classes[1]"
    assert caught.value.value is item


@pytest.mark.parametrize("read", [parse_requests, parse_classes])
def test_text_that_cannot_be_written_is_refused(read):
    """The error says what is expected, in the words of this package."""
    with pytest.raises(InvalidInputError) as caught:
        read("ant\ud800")
    assert (caught.value.name, caught.value.expected) == ("text", "text that UTF-8 can encode")


@pytest.mark.parametrize(
    ("moment", "fix"),
    [
        ("2025-01-31T12:00:00", "Add 'Z' for UTC, or the local offset."),
        ("2025-01-31", "Add 'Z' for UTC, or the local offset."),
        ("yesterday", "Correct it, or leave it out to use the current time."),
        ("", "Correct it, or leave it out to use the current time."),
        ("0001-01-01T00:00:00+12:00", "Correct it, or leave it out to use the current time."),
        (datetime(2025, 1, 31), "Pass a string, e.g. `moment.isoformat()`."),
        (1738324800, "Pass a string, e.g. `moment.isoformat()`."),
    ],
)
def test_bad_times_are_refused(moment, fix):
    with refused("requested_at", moment) as error:
        ForgetRequest([0], requested_at=moment)
    assert error.value.fix == fix


@pytest.mark.parametrize("field", ["note", "request_id"])
@pytest.mark.parametrize("bad", [3, True, ["x"], b"x", "\ud800"])
def test_other_fields_are_text(field, bad):
    with pytest.raises(InvalidInputError) as caught:
        ForgetRequest([0], **{field: bad})
    assert (caught.value.name, caught.value.value) == (field, bad)


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        ({"note": "x"}, "request", {"note": "x"}),
        ([0], "request", [0]),
        ({"classes": [0], "class": 1}, "keys of the request", ["class"]),
    ],
)
def test_bad_dicts_are_refused(data, name, value):
    with refused(name, value):
        ForgetRequest.from_dict(data)


def test_a_plain_list_of_classes():
    """Classes are separated by ','; blanks around names do not count."""
    assert parse_classes("tench, cassette player,3") == ["tench", "cassette player", "3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p2;p3", "a list of classes without ';'"),
        ("p2;", "a list of classes without ';'"),
        ("p2,,p3", "class names that are not empty"),
        (" ", "class names that are not empty"),
    ],
)
def test_a_plain_list_is_one_list(text, expected):
    """A ';' would make what follows another task, and silently no part of the list; empty names are mistakes."""
    with refused("text", text) as error:
        parse_classes(text)
    assert error.value.expected == expected


names = st.text(min_size=1).filter(str.strip)
moments = st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.timezones()).map(datetime.isoformat)


@given(
    classes=st.lists(names | st.integers(min_value=0), min_size=1, unique=True),
    note=st.none() | st.text(),
    moment=st.none() | moments,
    number=st.none() | st.text(),
)
def test_round_trip(classes, note, moment, number):
    request = ForgetRequest(classes, note=note, requested_at=moment, request_id=number)
    assert ForgetRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert parse_utc(request.requested_at) == request.requested_at
    if moment is not None:
        assert datetime.fromisoformat(request.requested_at) == datetime.fromisoformat(moment)
