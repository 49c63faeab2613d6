"""The error for a value that cannot be used."""

from __future__ import annotations

import os
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


class PrivateInputError(InvalidInputError):
    """A cell of a data set, or classes that were asked for, cannot be used.

    The message says what the value is, without its text, which may name a person: messages get into logs. The
    attribute `value` has it.

    Args:
        name (`str`):
            As in [`InvalidInputError`].
        value (`Any`):
            As in [`InvalidInputError`].
        expected (`str`):
            As in [`InvalidInputError`].
        fix (`str`, *optional*, defaults to `""`):
            As in [`InvalidInputError`].
        shown (`str`, *optional*):
            What the message calls the value; by default the result of [`without_content`].
    """

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", shown: str | None = None):
        super().__init__(name, without_content(value) if shown is None else shown, expected, fix)
        self.value = value
        self.shown = shown

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.expected, self.fix, self.shown)


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


def without_content(cell: Any) -> Any:
    """Returns what a cell of a data set holds, without its content, for an error: its text may name a person.

    Args:
        cell (`Any`):
            The cell.

    Returns:
        `Any`: Numbers, lists of numbers and `None` as they are; of anything else its kind and size, `str`.
    """
    numbers = cell if isinstance(cell, (list, tuple)) else [cell]
    if all(number is None or isinstance(number, (bool, int, float)) for number in numbers):
        return cell
    if isinstance(cell, str):
        return "text" if cell.strip() else cell
    kind = f"a {type(cell).__name__}"
    if (shape := getattr(cell, "shape", None)) is not None:
        return f"{kind} of shape {tuple(shape)}"
    return f"{kind} of length {len(cell)}" if hasattr(cell, "__len__") else kind


def cause(error: BaseException, path: Any = None) -> str:
    """Returns what an error about a file says, without the path of the file: it may name a person.

    Args:
        error (`BaseException`):
            The error.
        path (`str` or `os.PathLike`, *optional*):
            The path, if there is one.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    shows_path = path is not None and os.path.basename(path) in text
    return type(error).__name__ if shows_path or not text else text


def short(value: Any) -> str:
    """Returns the `repr` of a value, of at most 100 characters."""
    try:
        text = repr(value)
    except Exception:  # nested endlessly, or a class whose own `__repr__` fails
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else text[:97] + "..."
