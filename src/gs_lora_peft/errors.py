"""The error for a value that cannot be used."""

from __future__ import annotations

from typing import Any


class InvalidInputError(ValueError):
    """An argument, an option, a setting, a file or a cell of a data set holds a value that cannot be used.

    The message is made of the parts below, which tests and callers read instead of the prose.

    Args:
        name (`str`): What holds the value: an argument such as `num_train_epochs`, a path, a row and its column.
        value (`Any`): The value as it was given.
        expected (`str`): What was expected in its place.
        fix (`str`, *optional*): One sentence on what to do.

    Attributes:
        name, value, expected, fix: As given.
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = ""):
        super().__init__(f"`{name}` is {_short(value)}; expected {expected}.{' ' if fix else ''}{fix}")
        self.name = name
        self.value = value
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from its message alone, which worker processes would trip over.
        return type(self), (self.name, self.value, self.expected, self.fix)


def _short(value: Any) -> str:
    """A `repr` that does not flood a message."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
