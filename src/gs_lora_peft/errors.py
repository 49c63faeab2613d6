"""The error for a value that cannot be used."""

from __future__ import annotations

from typing import Any


class InvalidInputError(ValueError):
    """An argument, an option, a setting, a file or a cell of a data set holds a value that cannot be used.

    The message consists of the arguments below. Each is an attribute too, so that callers need not read the message.

    Args:
        name (`str`):
            Name of what holds the value: an argument such as `num_train_epochs`, a path, or a row and its column.
        value (`Any`):
            The value as it was given.
        expected (`str`):
            What was expected instead; continues "expected …".
        fix (`str`, *optional*, defaults to `""`):
            One sentence on what to do.
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = ""):
        super().__init__(f"`{name}` is {short(value)}; expected {expected}.{' ' if fix else ''}{fix}")
        self.name = name
        self.value = value
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are unpickled from their message alone by default. Worker processes pickle what they raise.
        return type(self), (self.name, self.value, self.expected, self.fix)


def located(error: ValueError, place: str) -> ValueError:
    """Returns the same error, of the same class, with the place it comes from in front.

    Args:
        error (`ValueError`):
            The error.
        place (`str`):
            Name of the place, such as a row.
    """
    if isinstance(error, InvalidInputError):
        return type(error)(f"{place}: {error.name}", error.value, error.expected, error.fix)
    return type(error)(f"{place}: {error}")


def short(value: Any) -> str:
    """Returns the `repr` of a value, of at most 100 characters."""
    try:
        text = repr(value)
    except Exception:  # nested endlessly, or a class whose own `__repr__` fails
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else text[:97] + "..."
