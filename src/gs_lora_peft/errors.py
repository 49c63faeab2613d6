"""The error for a value that cannot be used."""

from __future__ import annotations

from typing import Any


class InvalidInputError(ValueError):
    """An argument, an option, a setting, a file or a cell of a data set holds a value that cannot be used.

    The message is made of the parts below, which tests and callers read instead of the prose.

    Args:
        name (`str`):
            What holds the value: an argument such as `num_train_epochs`, a path, a row and its column.
        value (`Any`):
            The value as it was given.
        expected (`str`):
            What was expected in its place.
        fix (`str`, *optional*):
            One sentence on what to do.

    Attributes:
        name:
            As given.
        value:
            As given.
        expected:
            As given.
        fix:
            As given.
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = ""):
        super().__init__(f"`{name}` is {short(value)}; expected {expected}.{' ' if fix else ''}{fix}")
        self.name = name
        self.value = value
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from its message alone, which worker processes would trip over.
        return type(self), (self.name, self.value, self.expected, self.fix)


def located(error: ValueError, place: str) -> ValueError:
    """The same error, of the same class, that says where in a larger whole it arose."""
    if isinstance(error, InvalidInputError):
        return type(error)(f"{place}: {error.name}", error.value, error.expected, error.fix)
    return type(error)(f"{place}: {error}")


def short(value: Any) -> str:
    """A `repr` that does not flood a message."""
    try:
        text = repr(value)
    except Exception:  # nested without end, or a class whose own `__repr__` fails
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else text[:97] + "..."
