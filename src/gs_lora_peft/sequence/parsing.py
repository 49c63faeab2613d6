"""Requests as one writes them on a command line."""

from __future__ import annotations

from ..checking import Text, checked
from ..errors import InvalidInputError
from .request import ForgetRequest


def parse_requests(text: str) -> list[ForgetRequest]:
    """Read a sequence of requests: tasks are separated by `;`, the classes of a task by `,`.

    Names that hold a comma or a semicolon can be given by their id.

    Args:
        text (`str`): e.g. `"tench,cassette player;school bus"` or `"3;7;0,1"`.

    Returns:
        `list[ForgetRequest]`: one request per task, in order.

    Raises:
        ValueError: if the text, a task or a class is empty; the message shows which.

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
            raise InvalidInputError(f"task {number} of {text!r}", task, "class names that are not empty", fix)
        requests.append(ForgetRequest(classes))
    return requests


def parse_classes(text: str) -> list[str]:
    """Read a plain list of classes, separated by `,`, such as the classes to keep whose data must not be used.

    Names that hold a comma or a semicolon can be given by their id.

    Args:
        text (`str`): e.g. `"tench,cassette player"` or `"3,7"`.

    Returns:
        `list[str]`: names, or ids as they are written, in order.

    Raises:
        ValueError: if the text or a class is empty, or if there is a `;`, which separates tasks and not classes.

    Example:

        ```py
        >>> parse_classes("tench,cassette player")
        ['tench', 'cassette player']
        ```
    """
    checked("text", text, Text, fix="Write the classes as 'tench,cassette player'.")
    if ";" in text:
        raise InvalidInputError("text", text, "a list of classes without ';'", "Separate them with ','.")
    classes = _split(text)
    if not all(classes):
        fix = "Separate classes with ',', e.g. 'tench,cassette player'."
        raise InvalidInputError("text", text, "class names that are not empty", fix)
    return classes


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
