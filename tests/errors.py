"""Refusals, compared by their parts instead of their prose."""

from contextlib import contextmanager

import pytest

from gs_lora_peft.errors import InvalidInputError

ANY = object()


@contextmanager
def refused(name, value=ANY, kind=InvalidInputError):
    """What runs inside is refused because of `name`, which holds `value`."""
    with pytest.raises(kind) as error:
        yield error
    assert error.value.name == name
    if value is not ANY:
        assert error.value.value == value
